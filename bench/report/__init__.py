"""What was measured: figures, plots, comparisons."""
