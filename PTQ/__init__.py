"""Post-training quantization by block reconstruction."""
