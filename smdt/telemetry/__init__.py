"""What the process tells the world while it works: metrics, endpoint, console."""
