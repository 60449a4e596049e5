"""Start a multi-node run and keep it alive."""
