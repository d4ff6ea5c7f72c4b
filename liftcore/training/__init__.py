"""Training: a source says what each step trains on, a runner takes it, the loop does the rest."""
