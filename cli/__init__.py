"""What the `cxr` command shows and reads: steps and bars, tables, inputs, the demo."""
