"""ONNX graphs -> TensorRT plans."""
