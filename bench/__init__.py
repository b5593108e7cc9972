"""`cxr bench`: measure a served model, profile it, and compare it with its targets."""
