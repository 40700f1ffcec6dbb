"""What can be said of students without labels: agreement with CLIP, consistency under mirroring, coverage."""
