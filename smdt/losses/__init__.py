"""Losses over a global batch."""
