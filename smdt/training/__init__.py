"""The training loop around DeepSpeed engines, its checkpoints and its run folder."""
