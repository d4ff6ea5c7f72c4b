"""Question sets by method: needles, LooGLE, LongBench."""
