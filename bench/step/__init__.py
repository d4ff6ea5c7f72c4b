"""Whole training steps, against PEFT under Trainer and a plain loop."""
