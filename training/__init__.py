"""From Open-i files to a trained model bundle."""
