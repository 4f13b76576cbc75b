"""Releases on the Hugging Face hub: `USER/NAME`, or `USER/NAME@REVISION` for a pinned one."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from retort.common.errors import UserError
from retort.pretrained.cache import cache_folder

FILES = (
    *("model.safetensors", "config.json", "checksums.json", "recipe.json", "README.md"),
    *("tokenizer/*", "graph/*", "*.onnx", "*.json", "tokens.txt"),
)
"""Patterns of the files of a release or an export; nothing else is downloaded."""
HEADS = ("config.json", "export.json")
"""A release has the first of these files, an export the second."""
LARGEST = 20_000_000_000
"""Bytes of a release; a larger repository is refused."""
_NAME = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@([A-Za-z0-9][\w./-]{0,127}))?")
_COMMIT = re.compile("[0-9a-f]{40}")

log = logging.getLogger(__name__)


def endpoint() -> str | None:
    """Address of the hub: `$HF_ENDPOINT`, or None for the default."""
    return os.environ.get("HF_ENDPOINT") or None


def hub_name(source: str | Path) -> tuple[str, str | None] | None:
    """Name and revision of a model on the hub, or None where `source` is a folder, missing or not."""
    text = str(source)
    found = _NAME.fullmatch(text)
    if found is None or Path(text).exists() or Path(text).parent.is_dir() or text.startswith("exp/"):
        return None
    return found[1], found[2]


def find_release(source: str | Path) -> Path:
    """The folder of a model: `source` itself, or that of a release on the hub, downloaded into the cache.

    A release pinned by its commit is downloaded once and then needs no network. Without a revision the newest one is
    used, and a warning names its commit.

    Raises:
        UserError: there is no such model or revision, it is no release, it is too large, or the hub cannot be reached.
    """
    named = hub_name(source)
    if named is None:
        return Path(source)
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError:
        raise UserError(
            "no such folder, and huggingface_hub, which downloads models, is not installed",
            where=source,
            remedy="Check the path, or run: pip install huggingface_hub",
        ) from None
    name, revision = named
    folder = cache_folder() / "hub"
    if revision is not None and _COMMIT.fullmatch(revision):
        try:
            cached = snapshot_download(
                name, revision=revision, cache_dir=folder, local_files_only=True, allow_patterns=[*FILES]
            )
            if any((Path(cached) / each).is_file() for each in HEADS):
                return Path(cached)
        except (LocalEntryNotFoundError, OSError):
            pass
    return _downloaded(name, revision, folder)


def _downloaded(name: str, revision: str | None, folder: Path) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    shown = f"{name}@{revision}" if revision else name
    try:
        about = HfApi(endpoint=endpoint()).model_info(name, revision=revision, files_metadata=True)
        _check(about, shown)
        commit = str(about.sha)
        if revision is None:
            log.warning("%s is not pinned; this is %s@%s", name, name, commit)
        found = snapshot_download(
            name, revision=commit, cache_dir=folder, endpoint=endpoint(), allow_patterns=[*FILES]
        )
    except RevisionNotFoundError:
        raise UserError(
            "there is no such revision", where=shown, remedy="Give a commit, branch or tag"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            "no such folder, and no such model on the hub",
            where=shown,
            remedy="Check the name; for a private model set HF_TOKEN",
        ) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise unreachable(error, shown) from None
    except Exception as error:  # those of the HTTP library, which changes between versions
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3")):
            raise
        raise unreachable(error, shown) from None
    return Path(found)


def unreachable(error: Exception, where: str) -> UserError:
    """An error of the hub or of the network as one line."""
    reason = (
        str(error).strip().splitlines()[0][:200].rstrip(".") if str(error).strip() else type(error).__name__
    )
    return UserError(
        f"no such folder, and the hub did not answer ({reason})",
        where=where,
        remedy="Check the path or the network",
    )


def _check(about: object, shown: str) -> None:
    files = {each.rfilename: each.size or 0 for each in getattr(about, "siblings", None) or []}
    if not files.keys() & set(HEADS):
        raise UserError("this repository is not a release of Retort", where=shown, remedy="Check the name")
    if sum(files.values()) > LARGEST:
        raise UserError(
            f"the repository has {sum(files.values()) / 1e9:.0f} GB, more than {LARGEST / 1e9:.0f} GB",
            where=shown,
            remedy="Download it by hand and give the folder",
        )
