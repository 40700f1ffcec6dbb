"""Ratios measured side by side in one run. Each program is run as a module from the repository's root."""
