"""A run and its attempts: commands, supervision, restarts."""
