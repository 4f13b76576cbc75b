from __future__ import annotations

import inspect
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from typer import Typer
from typer.testing import CliRunner

from retort.cli import app
from retort.common.errors import UserError
from retort.decoding.options import (
    GREEDY,
    DecodingOptions,
    flag,
    make_options,
    option,
    options_page,
    options_to_dict,
    read_options,
)
from retort.verbs.decoding import Given, decoding_options, with_decoding_options
from retort.verbs.evaluate import evaluate
from retort.verbs.label import label
from retort.verbs.transcribe import transcribe
from retort.verbs.tune import tune

PAGE = Path(__file__).parents[2] / "docs" / "decoding_options.md"


def test_greedy_is_the_default() -> None:
    assert DecodingOptions() == GREEDY == DecodingOptions(beam=1, nbest=1)
    assert DecodingOptions(10, 10).nbest == 10


@pytest.mark.parametrize(
    ("beam", "nbest", "words"),
    [(0, 1, "beam is 0"), (-3, 1, "beam is -3"), (4, 0, "nbest is 0"), (4, 5, "nbest 5 .* beam of 4")],
)
def test_a_number_that_cannot_be(beam: int, nbest: int, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        DecodingOptions(beam, nbest)
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


FUSED: dict[str, Any] = {"beam": 10, "lm": "exp/lm/model", "lm_weight": 0.3}
JOINT: dict[str, Any] = {**FUSED, "length_weight": 0.7, "mode": "attention_rescoring", "ctc_weight": 0.5}
BOTH: dict[str, Any] = {**FUSED, "rescore": "bert/", "rescore_weight": 1.0, "length_weight": -0.5}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"lm": "x", "lm_weight": -0.1}, "lm_weight is -0.1"),
        ({"lm": "x", "lm_weight": float("nan")}, "lm_weight is nan"),
        ({"lm_weight": 0.1}, "lm weight is 0.1, but no model"),
        ({"beam": 4, "rescore_weight": 0.1}, "rescore weight is 0.1, but no model"),
        ({"length_weight": float("inf")}, "length_weight is inf"),
        ({"graph": "x", "length_weight": 0.1}, "length weight is 0.1, but the costs of a decoding graph"),
        ({"rescore": "x", "rescore_weight": 0.1}, "nothing to rescore"),
        ({"rescore_kind": "bert"}, "rescore kind is 'bert'.*auto, causal, masked"),
        ({"rescore_case": "title"}, "rescore case is 'title'"),
        ({"mode": "attention"}, "mode is 'attention'.*own, joint, ctc, attention_rescoring, ctc_rescoring"),
        ({"mode": "ctc_rescoring"}, "the CTC head has nothing to rescore"),
        ({"mode": "attention_rescoring"}, "the decoder has nothing to rescore"),
        ({"ctc_weight": 1.5}, "ctc_weight is 1.5"),
        ({"ctc_weight": float("nan")}, "ctc_weight is nan"),
    ],
)
def test_language_models_that_cannot_be(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        DecodingOptions(**values)
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


def test_names_of_what_was_used() -> None:
    assert (GREEDY.suffix, GREEDY.label) == ("", "")
    assert (DecodingOptions(10).suffix, DecodingOptions(10, 5).label) == ("", "beam10")
    assert (DecodingOptions(**FUSED).suffix, DecodingOptions(**FUSED).label) == ("+lm", "beam10+lm.lm")
    assert DecodingOptions(**BOTH).suffix == "+lm+rescore"
    assert DecodingOptions(**BOTH).label == "beam10+lm.lm+rescore.bert"
    assert DecodingOptions(lm="../x").label == "beam1+lm.x"
    # A hybrid's own scale has no name; that of a named graph is a weight.
    assert DecodingOptions(acoustic_scale=0.4).label == "scale0.4"
    assert DecodingOptions(beam=5, acoustic_scale=0.4).label == "beam5+scale0.4"
    assert DecodingOptions(graph="../x", acoustic_scale=0.4).label == "beam1+graph.x"
    # So that scores with it do not take the place of those without.
    assert DecodingOptions(10, length_weight=1.5).label == "beam10+length1.5"
    assert (DecodingOptions(length_weight=-1).suffix, DecodingOptions(length_weight=-1).label) == (
        "+length",
        "length-1",
    )
    recognised = DecodingOptions(10, mode="ctc", ctc_weight=0.5)
    assert (recognised.suffix, recognised.label) == ("+ctc", "ctc+beam10")


@pytest.mark.parametrize(
    "values", [{}, {"beam": 10, "nbest": 3}, {"length_weight": -1.5}, FUSED, BOTH, JOINT]
)
def test_to_a_file_and_back(values: dict[str, Any], tmp_path: Path) -> None:
    options, path = DecodingOptions(**values), tmp_path / "tuned.json"
    content = options_to_dict(options)
    path.write_text(json.dumps({**content, "tuning": {"data": "tune"}}))
    assert read_options(path) == options
    assert ("lm" in content, "rescore" in content) == (bool(options.lm), bool(options.rescore))
    assert ("length_weight" in content) == bool(options.length_weight or options.rescore)
    assert ("mode" in content, "ctc_weight" in content) == ("mode" in values, "ctc_weight" in values)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not decoding options"),
        ("[1]", "not decoding options"),
        ('{"lm": "x"}', "no beam"),
        ('{"beam": "many"}', "not decoding options"),
        ('{"beam": 0}', "beam is 0"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_is_none(content: str | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=words) as caught:
        read_options(path)
    assert "tuned.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@dataclass(frozen=True)
class MoreOptions(DecodingOptions):
    """One option more than there is, declared as all of them are."""

    blank_penalty: float = option(
        0.0,
        "Score subtracted for every blank.",
        (0, 10),
        students=("ctc", "transducer"),
        suffix=lambda own: "+blanks" * bool(own.blank_penalty),
        label=lambda own: f"blank{own.blank_penalty:g}" if own.blank_penalty else "",
    )


def verb(given: Given) -> None:
    """A verb that decodes."""
    print(sorted(given.items()))


@pytest.mark.parametrize("name", ["evaluate", "transcribe", "tune", "label"])
def test_an_option_is_one_field(name: str) -> None:
    """A field of the dataclass is an option of the verbs, a keyword of Python, an entry of the page, and a name."""
    verbs = {"evaluate": evaluate, "transcribe": transcribe, "tune": tune, "label": label}
    app = Typer(rich_markup_mode=None)
    app.command()(with_decoding_options(MoreOptions)(inspect.unwrap(verbs[name])))
    text = " ".join(CliRunner().invoke(app, ["--help"]).stdout.split())
    assert "--blank-penalty" in text
    assert "Score subtracted for every blank. [from 0 to 10; default 0; for ctc, transducer students]" in text


def test_what_else_follows_from_a_field() -> None:
    app = Typer()
    app.command()(with_decoding_options(MoreOptions)(verb))
    given = CliRunner().invoke(app, ["--blank-penalty", "0.5", "--beam", "4"]).stdout
    assert given.strip() == "[('beam', 4), ('blank_penalty', 0.5)]"
    made = make_options({"beam": 4, "blank_penalty": 0.5}, MoreOptions())
    assert (made.suffix, made.label) == ("+blanks", "beam4+blank0.5")
    assert options_to_dict(made) == {"beam": 4, "nbest": 1, "blank_penalty": 0.5}
    with pytest.raises(UserError):
        MoreOptions(blank_penalty=11)
    with pytest.raises(UserError):
        made.check_student("cif")
    made.check_student("ctc")
    assert "`blank_penalty`" in options_page(MoreOptions)


@pytest.mark.parametrize("name", ["evaluate", "transcribe"])
def test_every_field_is_an_option_of_the_verbs(name: str) -> None:
    text = CliRunner().invoke(app, [name, "--help"]).stdout
    assert all(flag(each.name) in text for each in fields(DecodingOptions))


def test_the_page_of_options_is_current() -> None:
    """Write it with `retort config --decoding-options > docs/decoding_options.md`."""
    assert PAGE.read_text(encoding="utf-8") == options_page()
    assert CliRunner().invoke(app, ["config", "--decoding-options"]).stdout == options_page()


def test_single_options_replace_those_of_the_base() -> None:
    base = DecodingOptions(beam=10, lm="exp/lm", lm_weight=0.3)
    assert make_options({"lm_weight": 0.5}, base) == DecodingOptions(beam=10, lm="exp/lm", lm_weight=0.5)
    assert make_options({"lm": Path("exp/lm"), "lm_weight": 0.3, "beam": 10}) == base
    for wrong in ({"bream": 4}, {"lm": "exp/lm"}, {"rescore": "bert", "beam": 4}, {"beam": "4"}, {"lm": 3}):
        with pytest.raises(UserError) as caught:
            make_options(wrong)
        assert caught.value.remedy
        assert "\n" not in str(caught.value)


def test_options_that_belong_to_a_file_of_tune(tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps(options_to_dict(DecodingOptions(10, lm="x", lm_weight=0.2))))
    found = decoding_options({"tuned": path, "nbest": 3, "vad": "none"})
    assert found == DecodingOptions(10, 3, lm="x", lm_weight=0.2, vad="none")
    with pytest.raises(UserError, match="--tuned and --beam"):
        decoding_options({"tuned": path, "beam": 3})
