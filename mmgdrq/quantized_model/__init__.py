"""What holds for a quantized model as a whole."""
