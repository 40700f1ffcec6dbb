"""How good predictions are, from a few of them that a person marks: which to ask, and what the answers say."""
