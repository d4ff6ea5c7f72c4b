"""The figures and tables of the documents, from the result files."""
