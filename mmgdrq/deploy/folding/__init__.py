"""Fold the scales of a quantized model into batch normalization, and store the result."""
