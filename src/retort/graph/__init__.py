"""Weighted finite-state transducers: decoding graphs, the search in them, lattices."""
