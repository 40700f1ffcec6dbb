"""The command line: `hoi VERB`."""
