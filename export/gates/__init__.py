"""The gates: comparisons of graphs and servers with the model, which a bundle must pass to be published."""
