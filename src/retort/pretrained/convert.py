"""From the files of packages to a folder that transformers (or a synthesiser) opens, one function a format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from retort.pretrained.whisper_folder import write_whisper_folder

CONVERTERS: dict[str, Callable[[Path, Path], None]] = {"ctranslate2-whisper": write_whisper_folder}
"""Format of the catalogue -> (folder with the entry's files, empty folder of the result)."""
