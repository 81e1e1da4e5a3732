"""Cells, their trials and fingerprints, and how long they take; pure."""
