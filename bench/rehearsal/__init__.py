"""A rehearsal, without a GPU, of all that runs on one."""
