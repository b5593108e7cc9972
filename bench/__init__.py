"""`cxr bench`: a served model measured, profiled, and held against its targets."""
