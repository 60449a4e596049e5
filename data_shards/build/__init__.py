"""Raw data in, shards out: writing, finalizing, and who runs the tasks."""
