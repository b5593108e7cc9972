"""Build TensorRT plans from ONNX graphs."""
