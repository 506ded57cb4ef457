"""Latency tables: reading one, and measuring one by ONNX Runtime."""
