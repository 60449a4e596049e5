"""The training loop: steps, agreements, evaluations."""
