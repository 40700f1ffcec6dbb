"""A page on one's own machine: what a student finds in an image, and marks of right and wrong on predictions."""

from __future__ import annotations
