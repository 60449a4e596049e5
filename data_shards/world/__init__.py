"""The synthetic world: a procedural landscape and the cameras that photograph it."""
