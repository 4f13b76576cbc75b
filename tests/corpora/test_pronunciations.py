"""Pronunciations from pocketsphinx's dictionary and from espeak-ng."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from retort.common.errors import UserError
from retort.corpora.pronunciations import espeak_pronunciations, pocketsphinx_lexicon, with_english
from retort.text.lexicon import Lexicon

ARPABET = (
    """AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH"""
)
ODD_WORDS = """abruptly treasure butterfly awkward enough furniture beautiful vision thought boyhood idea poor hour
employer royal garage onion queue rhythm strength sphere yacht quarter aerial europe iron obscure museum orange
mountain button certain little written kitten sudden prism doctor ghost fjord gnome khaki tsar"""


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of pocketsphinx's name and layout, with a dictionary of four lines."""
    folder = tmp_path / "pocketsphinx" / "model" / "en-us"
    folder.mkdir(parents=True)
    (tmp_path / "pocketsphinx" / "__init__.py").write_text("raise RuntimeError('need not be imported')\n")
    content = "a AH\na(2) EY\nA EY\nbe B IY\n"
    (folder / "cmudict-en-us.dict").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("wheel")
def test_the_dictionary_in_pocketsphinx() -> None:
    assert dict(pocketsphinx_lexicon()) == {"A": (("AH",), ("EY",)), "BE": (("B", "IY"),)}
    assert pocketsphinx_lexicon(case="keep").words == ("a", "A", "be")


def test_without_pocketsphinx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retort.corpora.pronunciations.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed\. Run: pip install 'retort-asr\[hybrid\]'"):
        pocketsphinx_lexicon()


@pytest.mark.parametrize("installed", [True, False])
def test_what_a_lexicon_lacks(wheel: Path, monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    if not installed:
        monkeypatch.setattr("retort.corpora.pronunciations.find_spec", lambda name: None)
    asked: list[str] = []

    def rules(words: list[str]) -> dict[str, list[tuple[str, ...]]]:
        asked.extend(words)
        return {word: [("AY",)] for word in words if word != "Q7"}

    monkeypatch.setattr("retort.corpora.pronunciations.espeak_pronunciations", rules)
    own = Lexicon({"A": [["IY"]], "SEE": [["S", "X"]], "BOTH": [["X"], ["B"]], "UNASKED": [["X"]]})
    words = ["A", "SEE", "BE", "Q7", "BOTH", "BE"]
    found = with_english(own, words, ["B", "IY", "S", "AY"], case="upper")
    assert asked == (["SEE", "Q7"] if installed else ["SEE", "BE", "Q7"])
    assert dict(found) == {
        "A": (("IY",),),
        "SEE": (("AY",),),
        "BOTH": (("X",), ("B",)),
        "UNASKED": (("X",),),
        "BE": (("B", "IY"),) if installed else (("AY",),),
    }
    asked.clear()
    assert with_english(own, ["A", "BOTH"], ["B", "IY"], case="upper") is own
    assert asked == [], "espeak-ng need not be there if nothing is missing"


@pytest.mark.parametrize(
    ("word", "phones"),
    [
        ("MIKE", "M AY K"),
        ("white", "W AY T"),
        ("THREE", "TH R IY"),
        ("CHURCH", "CH ER CH"),
        ("JUDGE", "JH AH JH"),
        ("DON'T", "D OW N T"),
        ("HARRY", "HH AE R IY"),
        ("CARING", "K EH R IH NG"),
        ("BOTTLE", "B AA T AH L"),
        ("FLURBING", "F L ER B IH NG"),
    ],
)
def test_espeak_speaks_arpabet(word: str, phones: str) -> None:
    assert espeak_pronunciations([word]) == {word: [tuple(phones.split())]}


def test_espeak_leaves_out_what_is_no_english_word() -> None:
    found = espeak_pronunciations(["É", "我", "R2D2", "'", "", "WELL", "WELL"])
    assert list(found) == ["WELL"]


def test_every_sound_of_many_words_is_known() -> None:
    words = ODD_WORDS.split()
    found = espeak_pronunciations(words)
    assert list(found) == words
    assert {phone for ways in found.values() for way in ways for phone in way} <= set(ARPABET.split())


def test_without_espeak(monkeypatch: pytest.MonkeyPatch) -> None:
    from retort.corpora import espeak

    espeak._library_paths.cache_clear()
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    try:
        with pytest.raises(UserError, match=r"Run: pip install 'retort-asr\[demo\]'"):
            espeak_pronunciations(["well"])
    finally:
        espeak._library_paths.cache_clear()
