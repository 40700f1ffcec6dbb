"""What can be said of a student without labels: agreement with its teacher, consistency, coverage. No label is read."""
