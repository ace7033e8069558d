"""Finds which indices of which tensors can only be removed together, by following every axis."""
