"""Start a project of one's own, and check what a pipeline file names before anything long runs."""
