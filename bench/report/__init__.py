"""Reports of measurements: figures, plots, comparisons."""
