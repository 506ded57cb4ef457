"""The integer network as ONNX."""
