from __future__ import annotations

import itertools
import unicodedata
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retort.common.errors import UserError
from retort.config.ranges import choices_of
from retort.config.schema import NormaliserConfig
from retort.text.normalise import Form, Normaliser, character_class, is_cjk, recase

FIELDS = ("form", "case", "punctuation", "spaces", "homophones")
CONFIGS = [
    NormaliserConfig(**dict(zip(FIELDS, values)), kept=kept)
    for values in itertools.product(*(choices_of(NormaliserConfig, field) for field in FIELDS))
    for kept in ("", "'", "'-&", "’.")
]
# Plain random text seldom meets what breaks normalisers: marks, ligatures, case that changes length, quotes.
AWKWARD = st.sampled_from(
    list("'’ʼ´`-‐.,ßŉİıſǰΣςΐᾳﬁ㎏ｶﾞ℃½^¨\u0301\u0345\u0308é我，。Ａ\u00ad\u200b\u200d\t\u3000 aB9_")
)
TEXTS = st.lists(st.one_of(AWKWARD, st.characters()), max_size=12).map("".join)


@settings(max_examples=400, deadline=None)
@given(TEXTS, st.sampled_from(CONFIGS))
def test_applied_twice_changes_nothing(text: str, config: NormaliserConfig) -> None:
    normalise = Normaliser(config)
    once = normalise(text)
    assert normalise(once) == once


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.sampled_from([each for each in CONFIGS if each.punctuation == "drop"]))
def test_result_has_only_what_is_promised(text: str, config: NormaliserConfig) -> None:
    result = Normaliser(config)(text)
    kept = config.kept.replace("’", "'")
    assert all(unicodedata.category(each)[0] not in "PS" or each in kept for each in result)
    assert result == " ".join(result.split())
    if config.spaces == "drop":
        assert not any(each.isspace() for each in result)
    if config.form != "none":
        assert unicodedata.normalize(cast(Form, config.form), result) == result


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("don't stop", "DON'T STOP"),
        ("Don’t, donʼt, don`t", "DON'T DON'T DON'T"),
        ("'hello'", "HELLO"),
        ("‘hello world’", "HELLO WORLD"),
        ("the boys' books, 'tis", "THE BOYS BOOKS TIS"),
        ("rock 'n' roll", "ROCK N ROLL"),
        ("a well-known man", "A WELL KNOWN MAN"),
        ("yes—no…maybe", "YES NO MAYBE"),
        ("$5, 100%!", "5 100"),
        ("ＡＢＣ　１２３", "ABC 123"),
        ("你好，世界。", "你好 世界"),
        ("  two\t\nlines \u00a0 ", "TWO LINES"),
        ("soft\u00adhyphen \ufeffand\u200b zero", "SOFTHYPHEN AND ZERO"),
        ("straße ﬁn", "STRASSE FIN"),
        ("naïve café's", "NAÏVE CAFÉ'S"),
        ("¨a", "A"),
        ("", ""),
        ("?!...", ""),
    ],
)
def test_default(text: str, expected: str) -> None:
    assert Normaliser(NormaliserConfig())(text) == expected


def test_apostrophe_after_a_decomposed_letter_stays() -> None:
    normalise = Normaliser(NormaliserConfig(form="NFD", case="lower"))
    assert normalise("Café's") == unicodedata.normalize("NFD", "café's")


def test_without_form_full_width_and_marks_stay() -> None:
    normalise = Normaliser(NormaliserConfig(form="none", case="keep"))
    assert normalise("Ａe\u0301, b") == "Ａe\u0301 b"


def test_spaces_dropped_for_mandarin() -> None:
    normalise = Normaliser(NormaliserConfig(spaces="drop"))
    assert normalise(" 你 好，　世界 。") == "你好世界"
    assert normalise.words(" 你 好，　ok go 。") == ["你", "好", "OKGO"]


def test_what_sounds_alike_is_one_character() -> None:
    normalise = Normaliser(NormaliserConfig(spaces="drop", homophones="fold"))
    assert normalise("你好") == normalise("妮号") != normalise("你世")
    assert len(normalise("你好 ok")) == 4


def test_every_cjk_character_a_word() -> None:
    normalise = Normaliser(NormaliserConfig(spaces="split"))
    assert normalise("你好，ok go世界") == "你 好 OK GO 世 界"
    assert normalise.words("don't") == ["DON'T"]


def test_kept_punctuation() -> None:
    assert Normaliser(NormaliserConfig(punctuation="keep"))("'Tis, a  well‐known’") == "'TIS, A WELL-KNOWN'"
    assert Normaliser(NormaliserConfig(kept="-"))("well-known, don't") == "WELL-KNOWN DON T"


@pytest.mark.parametrize("field", FIELDS)
def test_wrong_choice_is_reported(field: str) -> None:
    with pytest.raises(UserError, match=rf"normaliser.{field} is 'odd'. Choose one of"):
        Normaliser(NormaliserConfig(**{field: "odd"}))


@given(st.text(), st.sampled_from(["upper", "lower", "keep"]))
def test_recase_holds_positions(text: str, case: str) -> None:
    result = recase(text, case)
    assert len(result) == len(text)
    assert all(new in (old, old.upper(), old.lower()) for old, new in zip(text, result))


def test_recase_leaves_what_would_grow() -> None:
    assert recase("straße", "upper") == "STRAßE"
    assert recase("İA", "lower") == "İa"


def test_classes_of_characters() -> None:
    assert [character_class(each) for each in "aé我カ3'"] == ["letter", "letter", "cjk", "cjk", "digit", "'"]
    assert not any(is_cjk(each) for each in "aé한，1 ")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        *(("I ❤\ufe0f you", "I YOU"), ("1\ufe0f\u20e3 #\ufe0f\u20e3 now", "1 NOW"), ("☎\ufe0f 555", "555")),
        *(("hi 👩\u200d🚀 there", "HI THERE"), ("👨\u200d👩\u200d👧", ""), ("ok 👍🏽", "OK"), ("🇬🇧", "")),
        *(
            ("👁\ufe0f\u200d🗨\ufe0f a", "A"),
            ("ℹ\ufe0f info ㊗\ufe0f 🈁", "INFO"),
            ("🏴\U000e0067\U000e007f", ""),
        ),
        *(
            ("❤\u0303 x", "X"),
            ("a\u200db 1\u200d2", "AB 12"),
            ("\u3164 \u115f", ""),
            ("葛\U000e0100城", "葛城"),
        ),
        *(("क्\u200dष", "क्\u200dष"), ("می\u200cخواهم", "می\u200cخواهم"), ("അവന്\u200d", "അവന്\u200d")),
        *(("5㎏", "5KG"), ("한국어", "한국어"), ("e\u0301te\u0301", "ÉTÉ")),
    ],
)
def test_nothing_unseen_is_left_of_symbols(text: str, wanted: str) -> None:
    normalise = Normaliser(NormaliserConfig())
    assert normalise(text) == wanted
    assert normalise(wanted) == wanted
