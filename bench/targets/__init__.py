"""Compare serving with its targets: the rows of docs/benchmarks.md."""
