"""Many documents, each a memory of its own in a folder of memories."""
