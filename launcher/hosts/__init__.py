"""The machines of a run: their list, the requests to them, and their answers."""
