"""Pretrained models: a catalogue of short names, downloads, conversion, and a cache."""

from retort.pretrained.cache import cache_folder, locate, resolve
from retort.pretrained.catalogue import Entry, load_catalogue

__all__ = ["Entry", "cache_folder", "load_catalogue", "locate", "resolve"]
