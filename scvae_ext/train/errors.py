"""What can go wrong in training."""

__all__ = ["TrainingDivergedError"]


class TrainingDivergedError(RuntimeError):
    """The objective became infinite or not a number."""
