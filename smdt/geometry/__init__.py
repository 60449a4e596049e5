"""Projection of aerial pixels into panoramas, and fields of view."""
