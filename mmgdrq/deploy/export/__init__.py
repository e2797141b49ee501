"""Write the dense parts of a folded model as ONNX graphs."""
