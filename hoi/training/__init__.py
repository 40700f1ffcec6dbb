"""Stage two: train students from the cache."""
