from __future__ import annotations

import re
from html.parser import HTMLParser

from retort.report.document import (
    Alignment,
    Document,
    Folded,
    Gallery,
    Paragraph,
    Picture,
    Section,
    Table,
    to_html,
    to_markdown,
)

PAIRS = [("the", "the"), ("cat", ""), ("<b>", "bee"), ("", "us"), ("我", "你")]


class Balance(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def document(*blocks: object) -> Document:
    return Document("A & B", "lead", [Section("One <1>", list(blocks))])  # type: ignore[arg-type]


def whole() -> Document:
    return document(
        Paragraph("plain"),
        Paragraph("something <missing>", "note"),
        Paragraph("run `retort <verb>`"),
        Table(("a", "b|c"), [["x", "1|2"]]),
        Picture("<svg></svg>", "a picture", Table(("n",), [["7"]])),
        Gallery({"loss": "<svg></svg>"}, [("run", "#123456", True)]),
        Folded("more", [Alignment("utt-1", PAIRS)], unfolded=True),
    )


def test_the_page_is_whole_and_needs_nothing_else() -> None:
    page = to_html(whole())
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert "something &lt;missing&gt;" in page
    assert "run <code>retort &lt;verb&gt;</code>" in page
    assert "<b><b></b>" not in page
    assert not re.search(r"(src|href)=[\"'](?!#)|url\(|@import|<script|https?://", page)
    assert "prefers-color-scheme:dark" in page
    assert 'name="viewport"' in page


def test_an_alignment_marks_each_kind_of_error() -> None:
    page = to_html(document(Alignment("utt-1", PAIRS)))
    kinds = re.findall(r'<span class="(\w+)" title', page)
    assert kinds == ["same", "deleted", "other", "inserted", "other"]


def test_markdown() -> None:
    text = to_markdown(whole())
    assert "# A & B\n\nlead\n" in text
    assert "> something \\<missing\\>" in text
    assert "| x | 1\\|2 |" in text
    assert "a picture\n\n| n |\n| --- |\n| 7 |" in text
    assert "*Pictures: loss.*" in text
    assert "svg" not in text


def test_markdown_lays_one_unit_under_the_other() -> None:
    lines = to_markdown(document(Alignment("utt-1", PAIRS))).split("```")[1].splitlines()[1:]
    assert lines == [
        "ref  the cat <b> ·  我",
        "hyp  the ·   bee us 你",
        "         ^^^ ^^^ ^^ ^^",
    ]


def test_names_are_no_markdown() -> None:
    hostile = "a|b\n# c <script>x</script> [y](javascript:z) ``` \x1b[2J _d_"
    found = Document(
        hostile,
        hostile,
        [
            Section(
                hostile,
                [
                    Paragraph(hostile, "note"),
                    Table((hostile, "n"), [[hostile, "1"]]),
                    Folded(hostile, [Alignment(hostile, [("```", hostile)])]),
                ],
            )
        ],
    )
    text = to_markdown(found)
    assert "\x1b" not in text
    assert "\x1b" not in to_html(found)
    outside = re.sub(r"(?ms)^(`{4,})text$.*?^\1$", "", text)
    assert outside != text
    for live in ("<script>", "[y](java", "\n# c", " _d_"):
        assert live not in outside
    rows = [line for line in outside.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3}
    assert "run `retort x`" in to_markdown(Document("t", "run `retort x`", []))
