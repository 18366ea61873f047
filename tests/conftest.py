"""Shared by every test: torch, when a test needs it, computes on one thread, so that timings and sums are steady."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by torch when it is imported
