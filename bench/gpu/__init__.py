"""`cxr bench gpu`: what one GPU does with the published size, in one command of at most eight minutes."""
