from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from retort import cli
from retort.common.errors import UserError
from retort.evaluation import compare, read_score
from retort.report.chapters import by_error
from retort.report.experiment import open_experiment
from retort.report.report import Report, write_report


def report(*folders: Path, out: Path | None = None, root: Path | None = None) -> Report:
    return write_report(folders, out, lambda *_: None, root or Path("exp"))


def section(markdown: str, title: str) -> str:
    return markdown.split(f"## {title}\n")[1].split("\n## ")[0]


@pytest.fixture(scope="module")
def both(experiments: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return report(experiments / "taught", experiments / "plain", out=tmp_path_factory.mktemp("out"))


def test_one_experiment_goes_into_its_own_folder(copies: Path) -> None:
    found = report(copies / "taught")
    assert (found.html, found.markdown) == (copies / "taught/report.html", copies / "taught/report.md")
    assert found.missing == []
    page = found.html.read_text()
    assert page.count("<svg") == page.count("</svg>") > 10
    assert not re.search(r"<script|<link|<img|(src|href)=[\"'](?!#|data:)", page)
    assert re.findall(r'id="(s\d+)"', page) == re.findall(r'href="#(s\d+)"', page)


def test_scores_and_comparison_are_those_of_the_files(both: Report, experiments: Path) -> None:
    text = section(both.markdown.read_text(), "Scores")
    files = [next((experiments / name).glob("evaluation/*/score.json")) for name in ("taught", "plain")]
    first, second = (read_score(file) for file in files)
    for score in (first, second):
        assert f"| {score.cer:.2%} |" in text
        assert f"| {score.wer:.2%} |" in text
    found = compare(first, second, measure="cer")
    assert (
        f"| CER | {found.difference:+.2%} | {found.low:+.2%} to {found.high:+.2%} | {found.p:.4f} |" in text
    )


def test_settings_sizes_and_curves(both: Report, experiments: Path) -> None:
    text = both.markdown.read_text()
    assert "| taught | acoustic | bert" in section(text, "Recipe")
    assert "| training.steps | 120 | 120 |" in section(text, "Recipe")
    assert "batches.workers" not in text
    # 32 and 32 wide taps to 16 wide vectors, with biases.
    assert f"| training only | {2 * (32 * 16 + 16):,} | 0 |" in section(text, "Sizes")
    last = open_experiment(experiments / "taught").metrics
    rate = [line["lr"] for line in last if "lr" in line][-1]
    assert re.search(rf"\| learning rate \| {re.escape(f'{rate:.4g}')} \|", section(text, "Curves"))


def test_worst_utterances_come_first(both: Report, experiments: Path) -> None:
    text = section(both.markdown.read_text(), "Worst utterances")
    (scored,) = open_experiment(experiments / "taught").scored.values()
    worst = by_error(scored)
    assert [each.characters.rate for each in worst] == sorted(
        (each.characters.rate for each in worst), reverse=True
    )
    shown = re.findall(r"^(test-\d+), speaker", text.split("### plain")[0], re.MULTILINE)
    assert shown == [each.id for each in worst[:5]]


def test_length_errors(both: Report) -> None:
    text = both.markdown.read_text()
    lengths = section(text, "Lengths")
    assert "| taught | 6 |" in lengths
    counts = [
        [int(each) for each in row] for row in re.findall(r"^\| [+-]\d+ \| (\d+) \| (\d+) \|", lengths, re.M)
    ]
    assert [sum(column) for column in zip(*counts)] == [6, 6]


def test_nothing_but_a_recipe_is_reported_as_such(copies: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(copies / "taught" / "recipe.json", bare)
    found = report(bare)
    reported = " ".join(found.missing)
    for word in (
        "no metrics yet",
        "not scored yet",
        "no model yet",
        "size is not known",
        "no trained model here",
    ):
        assert word in reported
    assert found.html.is_file()


def test_test_data_that_went_away(copies: Path, tmp_path: Path) -> None:
    path = copies / "plain" / "recipe.json"
    path.write_text(re.sub(r'"[^"]*/test"', f'"{tmp_path}/gone"', path.read_text()))
    found = report(copies / "plain")
    assert any("no such file or folder" in line for line in found.missing)
    assert "| plain |" in found.markdown.read_text()


def test_scores_on_other_data_are_not_compared(copies: Path) -> None:
    evaluation = next((copies / "plain").glob("evaluation/*"))
    evaluation.rename(evaluation.with_name("elsewhere-test"))
    found = report(copies / "taught", copies / "plain")
    assert "plain and taught were not scored on the same data." in found.missing
    assert "| elsewhere-test |" in found.markdown.read_text()


def test_no_experiment(experiments: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no experiment here"):
        report(experiments / "taught", tmp_path, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_verb(
    copies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["retort", "report", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    assert run(copies / "plain", "--out", tmp_path / "out") == 0
    assert "out/report.html" in capsys.readouterr().out
    assert (tmp_path / "out" / "report.md").is_file()
    assert run(tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith("retort: ")
    assert error.count("\n") == 1
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert run(copies / "plain", "--out", blocked / "below") == 2
    assert "nothing can be written here" in capsys.readouterr().err
