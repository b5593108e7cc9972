"""Run published graphs on this machine, on ONNX Runtime or OpenVINO."""
