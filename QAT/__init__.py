"""Quantization-aware training: fine-tuning that ends in a network of integers."""
