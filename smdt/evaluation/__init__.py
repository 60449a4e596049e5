"""How good the descriptors and images are."""
