"""Recognisers that expose taps."""
