"""Scores of descriptors and images."""
