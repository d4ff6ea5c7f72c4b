"""The command line: one verb a file."""

import os

# OpenMP's threads spin while they wait for each other, which beside other jobs takes the processor
# from the one that is waited for. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
