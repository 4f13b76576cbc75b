"""`retort release --push`: uploads a release to the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from retort.common.errors import UserError
from retort.pretrained.released import FILES, endpoint

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def check_name(name: str) -> None:
    """Check a name on the hub before the work starts.

    Raises:
        UserError: it is not USER/NAME.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"'{name}' is not a name on the hub", remedy="Give USER/NAME")


def push(folder: Path, name: str, *, private: bool = False) -> str:
    """Upload a release as one commit, creating the repository if it is missing.

    Args:
        folder: folder of the release.
        name: `USER/NAME`. The token is that of `hf auth login` or `$HF_TOKEN`.
        private: whether a new repository is private.

    Returns:
        The pinned name, `USER/NAME@COMMIT`.

    Raises:
        UserError: the name is not valid, or the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    check_name(name)
    api = HfApi(endpoint=endpoint())
    try:
        api.create_repo(name, private=private or None, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name, folder_path=folder, commit_message=f"Release {folder.name}", allow_patterns=[*FILES]
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise _refused(error, name) from None
    except Exception as error:  # those of the HTTP library, which changes between versions
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3")):
            raise
        raise _refused(error, name) from None
    return f"{name}@{commit.oid}"


def _refused(error: Exception, name: str) -> UserError:
    reason = (
        str(error).strip().splitlines()[0][:200].rstrip(".") if str(error).strip() else type(error).__name__
    )
    return UserError(
        f"the release was written, but the hub did not accept it ({reason})",
        where=name,
        remedy="Check the network and the token (hf auth login, or HF_TOKEN)",
    )
