"""Class maps on the training device."""
