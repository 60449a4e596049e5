"""Checkpoints and the run folder: write, resume, keep, compare."""
