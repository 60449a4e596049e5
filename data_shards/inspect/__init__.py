"""Inspection of a finished data set: verify, statistics, contact sheets."""
