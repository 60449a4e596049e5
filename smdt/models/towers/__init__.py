"""The retrieval model: two towers of any network, and weights to start from."""
