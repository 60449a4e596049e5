"""The machines of a run: which there are, how they are asked, what they answer."""
