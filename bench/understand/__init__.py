"""Which mix of objectives lets a model answer questions."""
