"""Checks that need a machine with GPUs: `make gpu-check`."""
