"""PyTorch modules -> ONNX graphs, in the precision and the layout that are served."""
