"""The command line: one verb a file."""

import os

# OpenMP's threads spin while they wait for each other, and beside other jobs that takes the
# processor from the one that is waited for: small products then took six times as long. A short
# spin keeps most of what spinning gives on an idle machine. Read when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
