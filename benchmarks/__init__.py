"""Measurements, each one command; figures in RESULTS.md."""
