"""Invented documents with known facts."""
