"""What each stage of training does in one optimisation step."""
