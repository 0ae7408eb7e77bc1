"""Quantization of frozen weights to 4 or 8 bits."""
