"""The model card: what a model was trained on, for what, and how good it is."""
