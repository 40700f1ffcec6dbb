"""Many students against one cache, in one table."""
