"""From Open-i files to a trained model bundle."""

__all__ = ["card", "config", "data", "evaluation", "model", "phantom", "train"]
