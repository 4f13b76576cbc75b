"""Starting the server: names, mistakes, and what is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from retort.common.errors import UserError
from retort.serving.limits import Limits
from retort.serving.models import split_name
from retort.serving.server import Server, is_loopback


def test_the_server_does_not_need_torch() -> None:
    program = (
        "import sys, retort.serving.server, retort.verbs.serve; "
        "print({'torch', 'lhotse', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("models/english", ("english", "models/english")),
        ("exp/own/cif/model", ("cif", "exp/own/cif/model")),
        ("whisper-1=models/english", ("whisper-1", "models/english")),
        ("user/name@0123", ("name", "user/name@0123")),
        ("/a=b/c", ("c", "/a=b/c")),
        ("model", ("model", "model")),
    ],
)
def test_names(source: str, expected: tuple[str, str]) -> None:
    assert split_name(source) == expected


def test_mistakes(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        Server([str(tmp_path / "nowhere")], port=0)
    with pytest.raises(UserError, match="tones"):
        Server([str(folder), str(folder)], port=0)
    with pytest.raises(UserError, match="host"):
        Server([str(folder)], host="no such host", port=0)
    with pytest.raises(UserError, match="queue"):
        Limits(queue=0)
    first = Server([str(folder)], port=0)
    with pytest.raises(UserError, match=str(first.port)):
        Server([str(folder)], port=first.port)
    first.state.models.close()
    first.socket.close()


def test_addresses() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "::1", "localhost", "127.1.2.3")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.1", "example.org")))
