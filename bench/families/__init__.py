"""Every causal family of transformers as a tiny random model."""
