"""Objectives: each turns a document into weighted training samples."""
