"""A report as blocks of text, tables and pictures, with output as Markdown and as one HTML file.

The HTML is self-contained, with pictures as SVG and styles in its head, and follows the
reader's light or dark mode.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TypeAlias

from rich.table import Table as ScreenTable

from retort.common.errors import printable

NOTHING = "·"
"""Placeholder for an empty side of an alignment."""


@dataclass(frozen=True)
class Paragraph:
    """A text; text between backticks is code, other Markdown is not interpreted."""

    text: str
    kind: str = ""
    """`note` for remarks and missing results."""
    markdown: bool = False
    """Whether the text is Markdown, which is written unchanged."""


@dataclass(frozen=True)
class Table:
    """Rows of texts under a header; the first column is on the left, the others on the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    prose: bool = False
    """Whether all columns are left-aligned."""


@dataclass(frozen=True)
class Picture:
    """An SVG; in Markdown it is replaced by the table, or by the caption."""

    svg: str
    caption: str
    table: Table | None = None
    wide: bool = False
    """Whether it scrolls horizontally on narrow screens, because its labels are small."""


@dataclass(frozen=True)
class Gallery:
    """Small SVGs by title in a row, with a legend of names, colours and dashes."""

    pictures: dict[str, str]
    legend: Sequence[tuple[str, str, bool]]
    """Name, colour, and whether the line is dashed."""


@dataclass(frozen=True)
class Alignment:
    """Aligned units of reference and hypothesis; an empty text marks an insertion or deletion."""

    title: str
    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Folded:
    """Blocks that the reader can fold and unfold."""

    title: str
    blocks: Sequence[Block]
    unfolded: bool = False


Block: TypeAlias = "Paragraph | Table | Picture | Gallery | Alignment | Folded"


@dataclass
class Section:
    title: str
    blocks: list[Block] = field(default_factory=list)


@dataclass
class Document:
    title: str
    lead: str
    sections: list[Section] = field(default_factory=list)


def to_markdown(document: Document, html_name: str = "report.html") -> str:
    """The document without pictures, which are in the file `html_name` in the same folder, if given."""
    parts = [f"# {_inline(document.title)}", _prose(document.lead)]
    if html_name:
        parts.append(f"The pictures are in [{html_name}]({html_name}).")
    whole = "\n\n".join([*parts, *map(section_to_markdown, document.sections)]) + "\n"
    return printable(whole, keep="\n")


def section_to_markdown(section: Section) -> str:
    """A heading of the second level and what is under it."""
    texts = (_markdown(block) for block in section.blocks)
    whole = "\n\n".join([f"## {_inline(section.title)}", *(text for text in texts if text)])
    return printable(whole, keep="\n")


def to_screen(table: Table, title: str) -> ScreenTable:
    """A table for the console."""
    shown = ScreenTable(title=title)
    for number, name in enumerate(table.header):
        shown.add_column(name, justify="right" if number else "left")
    for row in table.rows:
        shown.add_row(*row)
    return shown


def to_html(document: Document) -> str:
    """The document as one page."""
    sections = "\n".join(
        f'<section id="s{number}"><h2>{escape(section.title)}</h2>\n{_all_html(section.blocks)}</section>'
        for number, section in enumerate(document.sections)
    )
    links = "".join(
        f'<a href="#s{number}">{escape(section.title)}</a>'
        for number, section in enumerate(document.sections)
    )
    title, lead = escape(document.title), escape(document.lead)
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{title}</title><style>{STYLE}</style></head>
<body><header><h1>{title}</h1><p>{lead}</p><nav>{links}</nav></header>
<main>{sections}</main></body></html>
"""
    return printable(page, keep="\n\t")


def _markdown(block: Block) -> str:
    match block:
        case Paragraph(text, kind, markdown):
            shown = text if markdown else _prose(text)
            return f"> {shown}" if kind else shown
        case Table(header, rows, prose):
            rule = ["---" if prose or index == 0 else "---:" for index in range(len(header))]
            lines = [[*map(_inline, header)], rule, *([*map(_inline, row)] for row in rows)]
            return "\n".join(f"| {' | '.join(line)} |" for line in lines)
        case Picture(_, caption, table):
            shown = _inline(caption)
            return f"{shown}\n\n{_markdown(table)}" if table else f"*Picture: {shown}*"
        case Gallery(pictures):
            return f"*Pictures: {'; '.join(map(_inline, pictures))}.*"
        case Alignment(title, pairs):
            columns = _columns(pairs)
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", columns)), default=0))
            return f"{_inline(title)}\n\n{fence}text\n{columns}\n{fence}"
        case Folded(title, blocks):
            return "\n\n".join(
                [f"### {_inline(title)}", *(text for each in blocks if (text := _markdown(each)))]
            )


def _inline(text: str) -> str:
    """A text on one line with Markdown escaped, for cells and titles."""
    return re.sub(
        r"([\\`*\[\]<>|~]|(?<![^\W_])_|_(?![^\W_])|^[#+-](?=\s|$))", r"\\\1", " ".join(text.split())
    )


def _prose(text: str) -> str:
    """The same for a text with code between backticks."""
    parts = re.split(r"(`[^`\n]+`)", text)
    return " ".join(
        "".join(part if index % 2 else _outside(part) for index, part in enumerate(parts)).split()
    )


def _outside(text: str) -> str:
    begin, end = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
    return f"{begin}{_inline(text)}{end}" if text.strip() else text


def _columns(pairs: Sequence[tuple[str, str]]) -> str:
    """Two aligned lines, and a line of marks below that shows differences."""
    shown = [(printable(first) or NOTHING, printable(second) or NOTHING) for first, second in pairs]
    widths = [max(_cells(first), _cells(second)) for first, second in shown]
    lines = []
    for side, name in enumerate(("ref", "hyp")):
        padded = (pair[side] + " " * (width - _cells(pair[side])) for pair, width in zip(shown, widths))
        lines.append(f"{name}  {' '.join(padded)}".rstrip())
    marks = (
        ("^" * width if first != second else " " * width) for (first, second), width in zip(pairs, widths)
    )
    return "\n".join([*lines, f"     {' '.join(marks)}".rstrip()])


def _cells(text: str) -> int:
    """Width of a text in terminal columns."""
    return sum(1 + (unicodedata.east_asian_width(character) in "WF") for character in text)


def _all_html(blocks: Sequence[Block]) -> str:
    return "\n".join(_html(block) for block in blocks)


def _html(block: Block) -> str:
    match block:
        case Paragraph(text, kind):
            code = re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))
            return f'<p class="{escape(kind)}">{code}</p>' if kind else f"<p>{code}</p>"
        case Table():
            return _table(block)
        case Picture(svg, caption, _, wide):
            place = f'<div class="scroll"><div class="wide">{svg}</div></div>' if wide else svg
            return f"<figure>{place}<figcaption>{escape(caption)}</figcaption></figure>"
        case Gallery(pictures, legend):
            return _gallery(pictures, legend)
        case Alignment(title, pairs):
            return f'<div class="utterance"><p class="id">{escape(title)}</p>{_pairs(pairs)}</div>'
        case Folded(title, blocks, unfolded):
            state = " open" if unfolded else ""
            return f"<details{state}><summary>{escape(title)}</summary>{_all_html(blocks)}</details>"


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    kind = ' class="prose"' if table.prose else ""
    return (
        f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _gallery(pictures: dict[str, str], legend: Sequence[tuple[str, str, bool]]) -> str:
    names = "".join(
        f'<span><i style="border-top:3px {"dashed" if broken else "solid"} {colour}"></i>{escape(name)}</span>'
        for name, colour, broken in legend
    )
    figures = "".join(
        f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>" for title, svg in pictures.items()
    )
    return f'<p class="legend">{names}</p><div class="gallery">{figures}</div>'


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    parts = []
    for first, second in pairs:
        if first == second:
            kind, name = "same", "right"
        elif not first:
            kind, name = "inserted", "inserted"
        elif not second:
            kind, name = "deleted", "deleted"
        else:
            kind, name = "other", "substituted"
        upper, lower = (escape(text).replace(" ", "␣") or NOTHING for text in (first, second))
        parts.append(f'<span class="{kind}" title="{name}"><b>{upper}</b><i>{lower}</i></span>')
    return f'<div class="pairs">{"".join(parts)}</div>'


STYLE = """
:root{--ink:#1d2330;--soft:#5b6475;--paper:#fcfcfb;--card:#ffffff;--line:#dfe2e8;--accent:#2f6fb0;
--sub:#fbe7c3;--sub-ink:#7a4b00;--del:#fadadd;--del-ink:#8f1d2c;--ins:#d8e8fb;--ins-ink:#164f8c;--note:#fff6df}
@media (prefers-color-scheme:dark){:root{--ink:#e4e7ee;--soft:#a0a9ba;--paper:#14171d;--card:#1b1f27;
--line:#333a47;--accent:#79b3ec;--sub:#4d3a14;--sub-ink:#ffd894;--del:#4f2029;--del-ink:#ffb3bd;
--ins:#1b3757;--ins-ink:#a9d0fb;--note:#332c18}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","Noto Sans CJK SC",sans-serif}
header,main{max-width:72rem;margin:0 auto;padding:0 1rem}
header{padding-top:2rem}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .4rem}
h2{font-size:1.2rem;margin:2.6rem 0 .8rem;padding-top:.6rem;border-top:1px solid var(--line)}
p{margin:.5rem 0;max-width:46rem}
header p{color:var(--soft)}
nav{display:flex;flex-wrap:wrap;gap:.3rem 1rem;font-size:.9rem;margin-top:.8rem}
a{color:var(--accent)}
main{padding-bottom:4rem}
.note{background:var(--note);border-left:3px solid #c99a2e;padding:.4rem .8rem;border-radius:0 4px 4px 0}
.scroll{overflow-x:auto;-webkit-overflow-scrolling:touch}
table{border-collapse:collapse;font-size:.9rem;margin:.6rem 0;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .7rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th{color:var(--soft);font-weight:600}
th:first-child,td:first-child,.prose th,.prose td{text-align:left}
.prose td{white-space:normal;overflow-wrap:anywhere;min-width:5.5rem;vertical-align:top}
tbody tr:hover{background:color-mix(in srgb,var(--accent) 8%,transparent)}
code{font:.9em ui-monospace,monospace}
figure{margin:1rem 0}
figcaption{color:var(--soft);font-size:.88rem;max-width:46rem}
svg{width:100%;height:auto;display:block}
svg text{font-family:inherit!important}
svg image{image-rendering:pixelated}
.wide{min-width:52rem}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,19rem),1fr));gap:.8rem}
.gallery figure{margin:0;padding:.6rem .6rem .2rem;background:var(--card);border:1px solid var(--line);border-radius:6px}
.gallery figcaption{color:var(--ink);font-weight:600;margin-bottom:.2rem}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;font-size:.9rem}
.legend span{display:inline-flex;align-items:center;gap:.45rem}
.legend i{width:1.8rem;height:0;display:inline-block}
.utterance{margin:1.1rem 0}
.id{color:var(--soft);font-size:.85rem;margin:0 0 .25rem;overflow-wrap:anywhere}
.pairs{display:flex;flex-wrap:wrap;gap:.25rem .2rem}
.pairs span{display:inline-flex;flex-direction:column;
padding:.05rem .35rem;border-radius:4px;text-align:center;line-height:1.35}
.pairs b{font-weight:500}
.pairs i{font-style:normal}
.same i{color:var(--soft)}
.other{background:var(--sub);color:var(--sub-ink)}
.other i{font-weight:600;border-bottom:1px dotted currentColor}
.deleted{background:var(--del);color:var(--del-ink)}
.deleted b{text-decoration:line-through}
.inserted{background:var(--ins);color:var(--ins-ink)}
.inserted i{font-weight:600}
details{margin:.8rem 0}
summary{cursor:pointer;color:var(--accent)}
@media print{nav{display:none}body{background:#fff}}
"""
