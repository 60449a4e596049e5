"""Metrics, endpoint and console of a process."""
