"""Compare every step of a deployment with the quantized model."""
