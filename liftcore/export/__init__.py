"""A memory's way into other runtimes: the forms that they read, and whether it has arrived."""
