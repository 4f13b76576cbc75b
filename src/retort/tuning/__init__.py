"""Choosing decoding options on tuning data."""
