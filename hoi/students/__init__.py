"""Students: lightweight networks that score pairs from cached signals. See `base`."""
