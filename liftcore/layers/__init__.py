"""Layers of a model: LoRA on the linear ones, and faster forms of the others."""
