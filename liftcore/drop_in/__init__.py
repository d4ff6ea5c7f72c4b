"""liftcore under somebody else's LoRA code: accelerate(model) and what it replaces."""
