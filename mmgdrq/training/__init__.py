"""What a training does beside the optimizer."""
