from __future__ import annotations

import json
from pathlib import Path

import pytest

from retort.common.errors import UserError
from retort.evaluation.bootstrap import intervals, share_of_gain
from retort.evaluation.scoring import Counts, Score, UtteranceScore, score_to_dict
from retort.tuning.lm_gap import lm_gap, rates_table, shares_table

WORDS, UTTERANCES = 20, 40


@pytest.fixture
def source(corpus: Path) -> str:
    return str(corpus / "test")


def write(folder: Path, source: str, label: str, errors: int, parameters: dict[str, int] | None) -> Score:
    """A score of so many errors, give or take, an utterance."""
    counts = [Counts(WORDS, errors + index % 2) for index in range(UTTERANCES)]
    score = Score(
        [
            UtteranceScore(f"u{index}", f"s{index // 2}", each, Counts(5 * WORDS, each.errors))
            for index, each in enumerate(counts)
        ],
        seconds=10.0,
        real_time_factor=0.5 + errors / 100,
    )
    path = Path(source)
    out = folder / "evaluation" / f"{path.parent.name}-{path.name}{f'-{label}' if label else ''}"
    out.mkdir(parents=True)
    content = score_to_dict(score, intervals(score))
    if parameters is not None:
        content["parameters"] = parameters
    (out / "score.json").write_text(json.dumps(content))
    return score


def test_all_that_was_scored_stands_in_the_table(tmp_path: Path, source: str) -> None:
    own, twin = {"student": 1000}, {"student": 1000}
    alone = write(tmp_path / "cif", source, "beam10", 10, own)
    fused = write(tmp_path / "cif", source, "beam10+lm.tone", 6, own | {"lm": 500})
    write(tmp_path / "cif", source, "beam10+rescore.bert", 11, own | {"rescore": 700})
    write(tmp_path / "cif", source, "", 12, None)
    taught = write(tmp_path / "hkd", source, "beam10", 8, twin)
    write(tmp_path / "hkd", source, "beam10+lm.tone", 5, twin | {"lm": 500})
    (tmp_path / "cif" / "evaluation" / f"{Path(source).parent.name}-test2").mkdir()
    gap = lm_gap([tmp_path / "cif"], [tmp_path / "hkd"], source)
    rows = {row[0]: row for row in rates_table(gap).rows}
    assert list(rows) == [
        *("student, greedy", "student, beam10", "student, beam10+lm.tone", "student, beam10+rescore.bert"),
        *("distilled, beam10", "distilled, beam10+lm.tone"),
    ]
    assert rows["student, beam10+lm.tone"][3] == "32.50%"
    assert rows["student, beam10+lm.tone"][5:] == ["0.560", "1,500"]
    assert rows["student, greedy"][6] == ""
    expected = share_of_gain(alone, fused, taught, measure="cer")
    assert gap.shares[0] == ("student, beam10+lm.tone", expected)
    assert expected.share == 0.5
    shares = shares_table(gap).rows
    assert shares[0] == ["student, beam10+lm.tone", "CER", "50%", "50% to 50%"]
    assert shares[2][1:] == ["CER", "no gain of the LM", ""]
    assert gap.notes == []


def test_seeds_are_pooled(tmp_path: Path, source: str) -> None:
    for seed in (1, 2):
        write(tmp_path / f"cif{seed}", source, "", 10 + seed, {"student": 5})
        write(tmp_path / f"cif{seed}", source, "beam4+lm.x", 5 + seed, {"student": 5, "lm": 2})
        write(tmp_path / f"hkd{seed}", source, "", 8 + seed, {"student": 5})
    write(tmp_path / "cif2", source, "beam4", 9, {"student": 5})
    gap = lm_gap(*([tmp_path / f"{name}{seed}" for seed in (1, 2)] for name in ("cif", "hkd")), source)  # type: ignore[arg-type]
    assert [cell.name for cell in gap.cells] == [
        "student, greedy",
        "student, beam4+lm.x",
        "distilled, greedy",
    ]
    assert gap.cells[0].score.wer == 0.6
    assert gap.cells[0].factor == pytest.approx(0.615)
    assert gap.shares[1][1].share == pytest.approx(0.4)
    assert "compared with greedy decoding" in gap.notes[0]


def test_what_is_missing(tmp_path: Path, source: str) -> None:
    cif, hkd = tmp_path / "cif", tmp_path / "hkd"
    with pytest.raises(UserError, match="no score on"):
        lm_gap([cif], [hkd], source)
    write(hkd, source, "beam4", 8, None)
    write(cif, source, "", 8, None)
    with pytest.raises(UserError, match="no score with a language model"):
        lm_gap([cif], [hkd], source)
    write(cif, source, "beam4+lm.x", 8, None)
    with pytest.raises(UserError, match="the plain beam4 or greedy decoding of both") as caught:
        lm_gap([cif], [hkd], source)
    assert "\n" not in str(caught.value)
