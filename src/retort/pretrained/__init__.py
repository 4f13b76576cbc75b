"""Pretrained models by short names: a catalogue, where they come from, and the cache that they are converted into."""

from retort.pretrained.cache import cache_folder, locate, resolve
from retort.pretrained.catalogue import Entry, load_catalogue

__all__ = ["Entry", "cache_folder", "load_catalogue", "locate", "resolve"]
