"""The alignment stage."""
