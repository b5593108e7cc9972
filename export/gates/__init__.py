"""The gates: what is published, and what serves, answers as the model does."""
