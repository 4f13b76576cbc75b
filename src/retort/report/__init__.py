"""The report of trained experiments."""
