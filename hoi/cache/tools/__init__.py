"""Estimate, verify, repair, rescore, pull and export caches."""
