"""Build a cache: plan, workers, manifest."""
