"""Make ONNX graphs from PyTorch modules, in the precision and the layout of a deployment."""
