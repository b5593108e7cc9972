"""Serving held to its targets: the rows of docs/benchmarks.md."""
