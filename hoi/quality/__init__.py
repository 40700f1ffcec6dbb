"""What can be said of students without labels: consistency under mirroring, coverage."""
