"""Read a finished cache as batches."""
