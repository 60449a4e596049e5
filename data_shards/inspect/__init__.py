"""Look at a finished data set: verify, statistics, contact sheets."""
