"""Settings of every test: one thread for tiny models, and no network."""

import os

# Before torch is imported: tiny tensors gain nothing from threads, and xdist's workers would fight for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
