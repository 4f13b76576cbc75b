from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from retort.common.errors import UserError
from retort.decoding.recogniser import load
from retort.evaluation import read_score
from retort.release.release import FILES, Released
from retort.report.experiment import open_experiment, results_folder
from retort.report.report import write_report
from retort.students.factory import build_student
from tiny_students import start_from

ROOT = Path(__file__).parents[2]
Release = Callable[..., Released]
Say = Callable[..., np.ndarray]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_holds_the_weights_in_half_and_nothing_else(released: Released, root: Path) -> None:
    assert {path.name for path in released.folder.iterdir()} == FILES
    weights = load_file(released.folder / "model.safetensors")
    trained = load_file(root / "second" / "model" / "model.safetensors")
    assert weights.keys() == trained.keys()
    for name, tensor in trained.items():
        if tensor.is_floating_point():
            assert weights[name].dtype == torch.float16
            assert torch.equal(weights[name], tensor.half())
        else:
            assert torch.equal(weights[name], tensor)
    size = sum(map(len, contents(released.folder).values()))
    assert released.size == size
    config = json.loads((released.folder / "config.json").read_text())
    assert config == json.loads((root / "second" / "model" / "config.json").read_text())


def test_opened_it_is_float32_and_recognises_what_the_model_recognises(
    released: Released, root: Path, say: Say
) -> None:
    small, whole = load(released.folder), load(root / "second")
    assert {each.dtype for each in small.student.parameters()} == {torch.float32}
    features = whole._features(say("abc def gh", seed=5))
    lengths = torch.tensor([features.shape[0]])
    with torch.inference_mode():
        encoded = [each.student.encode(features[None], lengths) for each in (small, whole)]
        fired = [each.student.fire(parts) for each, parts in zip((small, whole), encoded)]
    hidden, expected = (each.hidden for each in encoded)
    assert not torch.equal(hidden, expected)
    # Half precision keeps 11 bits of each weight; a wrong or missing tensor shifts everything by its own size.
    torch.testing.assert_close(hidden, expected, rtol=0, atol=0.02 * float(expected.abs().max()))
    torch.testing.assert_close(fired[0].quantity, fired[1].quantity, rtol=0.01, atol=0.02)


def test_a_training_can_start_from_it(released: Released) -> None:
    opened = load(released.folder)
    student = build_student(opened.student.config, opened.tokenizer.size, opened.features.bins)
    counts = start_from(student, opened.tokenizer, str(released.folder))
    assert (counts["not_used"], counts["fresh"]) == (0, 0)
    expected = opened.student.state_dict()
    for name, tensor in student.state_dict().items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name])


def test_a_release_of_a_release_is_the_same(
    released: Released, root: Path, corpus: Path, make_release: Release, tmp_path: Path
) -> None:
    again = make_release(released.folder, tmp_path / "again", root=root)
    first, second = contents(released.folder), contents(again.folder)
    assert first["model.safetensors"] == second["model.safetensors"]
    assert again.evaluations[0].score.utterances == released.evaluations[0].score.utterances


def test_its_results_stay_out_of_it(released: Released, root: Path, corpus: Path) -> None:
    before = contents(released.folder)
    home = results_folder(released.folder, root)
    assert home == root / "models" / "tones"
    (score,) = home.glob("evaluation/*/score.json")
    assert read_score(score).utterances == released.evaluations[0].score.utterances
    written = write_report([released.folder], None, lambda *_: None, root)
    assert written.html.parent == home
    assert contents(released.folder) == before
    text = written.markdown.read_text()
    assert f"| {read_score(score).cer:.2%} |" in text
    assert "second (second, 60 of 60 steps)" in text
    assert any("a release" in line for line in written.missing)
    assert not any("no model" in line or "was not run on" in line for line in written.missing)


def test_where_results_of_a_model_folder_go(
    released: Released, root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    experiments = Path("exp")
    assert results_folder(root / "second", experiments) == root / "second"
    assert results_folder(root / "second" / "model", experiments) == root / "second"
    shutil.copytree(root / "second" / "model", tmp_path / "model")
    assert results_folder(tmp_path / "model", experiments) == Path("exp/models/model")
    monkeypatch.chdir(released.folder)
    assert results_folder(Path(), experiments) == Path("exp/models/tones")
    monkeypatch.chdir(root / "second" / "model")
    assert results_folder(Path(), experiments) == root / "second"


def test_a_former_release_is_replaced_and_nothing_else(
    root: Path, released: Released, make_release: Release, tmp_path: Path
) -> None:
    out = shutil.copytree(released.folder, tmp_path / "tones")
    (out / "README.md").write_text("old")
    make_release(root / "second", out, root=root)
    assert contents(out) == contents(released.folder) | {"README.md": (out / "README.md").read_bytes()}
    assert "old" not in (out / "README.md").read_text().split()
    assert [path.name for path in tmp_path.iterdir()] == ["tones"]
    (out / "LICENSE").write_text("mine")
    for folder in (out, root / "second", root / "second" / "model"):
        before = contents(folder)
        with pytest.raises(UserError, match="other files than a release"):
            make_release(root / "second", folder, root=root)
        assert contents(folder) == before


def test_what_cannot_be_released(root: Path, make_release: Release, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no data"):
        make_release(root / "first", tmp_path / "out", root=root)
    with pytest.raises(UserError, match="no experiment here"):
        make_release(root / "none", tmp_path / "out", root=root)
    unfinished = shutil.copytree(root / "second", tmp_path / "unfinished")
    shutil.rmtree(unfinished / "model")
    with pytest.raises(UserError, match="no trained model here"):
        make_release(unfinished, tmp_path / "out", root=root)
    with pytest.raises(UserError, match="nowhere"):
        make_release(root / "second", tmp_path / "out", "nowhere", root=root)
    assert [path.name for path in tmp_path.iterdir()] == ["unfinished"]


def test_a_weight_beyond_half_precision(root: Path, make_release: Release, tmp_path: Path) -> None:
    experiment = shutil.copytree(root / "second", tmp_path / "large")
    path = experiment / "model" / "model.safetensors"
    weights = load_file(path)
    name = next(name for name, tensor in weights.items() if tensor.is_floating_point())
    weights[name].view(-1)[0] = 7e4
    save_file(weights, path)
    (path.parent / "checksums.json").unlink()
    with pytest.raises(UserError, match="exceed the range of float16") as caught:
        make_release(experiment, tmp_path / "out", root=root)
    assert caught.value.where == name
    assert not (tmp_path / "out").exists()


def test_more_data_is_scored_where_asked_for(
    root: Path, corpus: Path, make_release: Release, tmp_path: Path
) -> None:
    found = make_release(root / "second", tmp_path / "more", str(corpus / "validation"), root=root)
    names = [each.split for each in found.evaluations]
    assert names == [f"{corpus.name}/test", f"{corpus.name}/validation"]
    card = (found.folder / "README.md").read_text()
    assert all(f"| {name} |" in card for name in names)


def test_absolute_paths_of_the_recipe_are_reported(released: Released, corpus: Path, root: Path) -> None:
    assert str(corpus / "train") in released.absolute
    assert str(root / "first") in released.absolute
    assert open_experiment(released.folder).recipe.seed == 7


def test_a_checkout_keeps_releases_and_no_other_weights(tmp_path: Path) -> None:
    shutil.copy(ROOT / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    kept = ["models/hkd/model.safetensors", "models/a/b/model.safetensors", "models/hkd/README.md"]
    kept += ["models/hkd/tokenizer/tokenizer.model", "src/retort/release/release.py"]
    left = ["exp/hkd/model/model.safetensors", "model.safetensors", "mine/model/model.safetensors"]
    left += [
        "models/hkd.partial/model.safetensors",
        "models/hkd.former/config.json",
        "src/models/w.safetensors",
    ]
    command = ["git", "-C", str(tmp_path), "check-ignore", "--no-index", *kept, *left]
    done = subprocess.run(command, capture_output=True, text=True)
    assert sorted(done.stdout.split()) == sorted(left)
