"""`cxr bench gpu`: measure one GPU with the published model size, in at most eight minutes."""
