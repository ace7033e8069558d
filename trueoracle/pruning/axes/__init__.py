"""Which indices of which tensors can only go together, found by following every axis."""
