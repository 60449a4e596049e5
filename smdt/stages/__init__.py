"""The three stages of training: retrieval, alignment, segmentation."""
