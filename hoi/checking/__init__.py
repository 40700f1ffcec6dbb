"""Estimate how good predictions are from a sample of them that a person marks."""
