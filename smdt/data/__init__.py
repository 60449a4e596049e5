"""The data plane: which sample, when, on which rank, and its bytes as tensors."""
