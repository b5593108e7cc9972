"""Runs published graphs on this machine: ONNX Runtime and OpenVINO."""
