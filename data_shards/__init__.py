"""Build, verify and describe WebDataset shards."""
