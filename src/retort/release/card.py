"""The model card: what a released model is, learned, scored and cannot do, as the Hugging Face hub reads it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from retort import __version__
from retort.common.errors import UserError
from retort.config.schema import NormaliserConfig, Recipe
from retort.decoding.recogniser import Recogniser
from retort.evaluation.evaluate import Evaluation, data_name
from retort.info.describe import outline
from retort.pretrained.catalogue import load_catalogue
from retort.release.lineage import Lineage, heard, inside, taught, teacher_name
from retort.report.document import Block, Paragraph, Section, Table, section_to_markdown

TASK = "automatic-speech-recognition"
MEASURES = ("wer", "cer")


@dataclass(frozen=True)
class Terms:
    """What no recipe says of a model.

    Attributes:
        licence: of the weights; an SPDX identifier (`Apache-2.0`) or words.
        language: that it hears, ISO 639-1 (`en`).
        notes: on the data, a line each.

    Raises:
        UserError: the language is no code, or the licence is empty.
    """

    licence: str
    language: str
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch("[a-z]{2,3}", self.language):
            raise UserError(f"the language is '{self.language}'", remedy="Give its ISO 639 code, such as en")
        if not self.licence.strip():
            raise UserError("the licence is empty", remedy="Give an identifier such as Apache-2.0, or words")


def model_card(
    path: str,
    recogniser: Recogniser,
    lineage: Lineage,
    terms: Terms,
    evaluations: Sequence[Evaluation],
    commit: str,
    stored: str = "float16",
) -> str:
    """The card as Markdown under a head of YAML.

    Args:
        path: how the release's folder is named to its users; the model has its last part as name.
        recogniser: the release itself.
        lineage: its trainings.
        terms: what its maker says.
        evaluations: of the release.
        commit: of the code that made it; may be empty.
        stored: how the weights are stored.
    """
    name, recipe = path.rpartition("/")[2], lineage.recipes[-1]
    sections = [
        Section("Use", [Paragraph(_use(path), markdown=True)]),
        Section("Errors", _errors(path, evaluations, recipe)),
        Section("Training", _training(lineage, commit)),
        Section("Data and licence", _data(terms)),
        Section("Architecture", [Paragraph(_architecture(recogniser, recipe), markdown=True)]),
        Section("Limits", [Paragraph(_limits(recogniser.normalise.config, recipe, terms), markdown=True)]),
    ]
    body = [f"# {name}", _lead(recogniser, recipe, stored), *map(section_to_markdown, sections)]
    return f"---\n{_head(name, recipe, terms, evaluations)}\n---\n\n" + "\n\n".join(body) + "\n"


def _head(name: str, recipe: Recipe, terms: Terms, evaluations: Sequence[Evaluation]) -> str:
    licence, other = terms.licence.lower(), None
    if not re.fullmatch(r"[a-z0-9.-]+", licence):  # the hub's word for all that it has no word for
        licence, other = "other", re.sub(r"[^a-z0-9]+", "-", licence).strip("-")
    data = ModelCardData(
        license=licence,
        license_name=other,
        language=terms.language,
        library_name="retort",
        pipeline_tag=TASK,
        tags=[TASK, "retort", recipe.student.kind, *(["knowledge-distillation"] if recipe.distill else [])],
        metrics=list(MEASURES),
        model_name=name,
        base_model=origin[0] if (origin := encoder_origin(recipe)) else None,
        eval_results=[
            EvalResult(
                task_type=TASK,
                dataset_type=each.split,
                dataset_name=each.split,
                metric_type=measure,
                metric_value=each.intervals[measure].rate,
            )
            for each in evaluations
            for measure in MEASURES
            if each.score.words.reference
        ],
    )
    return data.to_yaml().strip()


def encoder_origin(recipe: Recipe) -> tuple[str, str] | None:
    """The hub name and the licence of the pretrained encoder that training started from, as far as they are known."""
    model = recipe.student.encoder.model
    if not model:
        return None
    entry = load_catalogue().get(Path(model).name)
    return (entry.hub, entry.licence) if entry else (model, "see there")


def _lead(recogniser: Recogniser, recipe: Recipe, stored: str) -> str:
    teachers = sorted({row.teacher for row in recipe.distill})
    names = ", ".join(teacher_name(recipe, each).rpartition("/")[2] for each in teachers)
    how = f"taught by the language model {names}, which it does not need any more" if names else "no teacher"
    parts = inside(recipe)
    began = f" Its decoder has weights that began as those of {parts}." if parts else ""
    if origin := encoder_origin(recipe):
        began += f" Its encoder was trained on from that of {origin[0]} (licence: {origin[1]})."
    return (
        f"A speech recogniser (`{recipe.student.kind}`) of {parameters(recogniser):,} parameters, stored as {stored}, "
        f"trained with Retort as system `{recipe.system}`: {how}.{began}"
    )


def _use(path: str) -> str:
    return (
        f"```sh\nretort transcribe {path} a.flac\n```\n\n"
        f'```python\nimport retort\n\nasr = retort.load("{path}")\nprint(asr.transcribe("a.flac").text)\n```'
    )


def _errors(path: str, evaluations: Sequence[Evaluation], recipe: Recipe) -> list[Block]:
    header = (
        "data",
        *(part for each in MEASURES for part in (each.upper(), "95 %")),
        "utterances",
        "speakers",
    )
    rows, notes = [], []
    for each in evaluations:
        bounds = [each.intervals[measure] for measure in MEASURES]
        rates = [part for b in bounds for part in (b.rate_text, b.range_text)]
        counts = f"{len(each.score.utterances):,}", f"{len(each.score.speakers):,}"
        rows.append([each.split, *rates, *counts])
        if each.score.missing:
            missing = f"{len(each.score.missing):,} utterances could not be used and count as deleted"
            notes.append(Paragraph(f"{each.split}: {missing}.", "note"))
        if remark := bounds[0].note:
            notes.append(Paragraph(f"{each.split}: {remark}.", "note"))
    said = (
        f"Of this folder's own weights, decoded greedily: what `retort evaluate {path} DATA` gives. Intervals are "
        f"over speakers (bootstrap); they say nothing of other seeds than the one, {recipe.seed}, trained here."
    )
    return [Table(header, rows), *notes, Paragraph(said)]


def _training(lineage: Lineage, commit: str) -> list[Block]:
    rows = [
        [each.name, heard(each), f"{each.training.steps:,}", str(each.seed), taught(each) or "nobody"]
        for each in lineage.recipes
    ]
    last = lineage.recipes[-1]
    kept = f"up to {last.training.checkpoints} checkpoints, the {last.training.keep}"
    if last.training.keep == "best":
        kept += f" on {', '.join(data_name(Path(each)) for each in last.data.validation)}"
    lines = [f"Each goes on from the weights of the one before; the last is the average of {kept}."]
    if len(rows) == 1:
        lines = [f"The weights are the average of {kept}."]
    if lineage.origin:
        lines.append(f"The first started from the weights of {lineage.origin}, whose recipe is not at hand.")
    made = f"Released with Retort {__version__}{f', commit {commit}' if commit else ''}"
    lines.append(f"{made}; `recipe.json` has the settings of the last.")
    return [
        Table(("recipe", "trained on", "steps", "seed", "taught"), rows, prose=True),
        Paragraph(" ".join(lines)),
    ]


def _data(terms: Terms) -> list[Block]:
    lines = [f"Licence of the weights: {terms.licence}.", *terms.notes]
    return [Paragraph("\n".join(f"- {line}" for line in lines), markdown=True)]


def _architecture(recogniser: Recogniser, recipe: Recipe) -> str:
    lines = outline(recipe, recogniser.student, recogniser.outputs)
    lines.append(f"parameters {parameters(recogniser):,}")
    return "\n".join(["```text", *lines, "```"])


def _limits(normaliser: NormaliserConfig, recipe: Recipe, terms: Terms) -> str:
    cases = {"upper": "in capitals", "lower": "in small letters", "keep": "in the case of its transcripts"}
    writes = cases[normaliser.case]
    if normaliser.punctuation == "drop":
        writes += f", without punctuation{f' but {normaliser.kept}' if normaliser.kept else ''}"
    lines = [
        "It has heard the data above and nothing else: expect more errors on other voices, accents, rooms, "
        f"microphones and subjects, and nothing of use in a language other than {terms.language}.",
        f"It writes {writes}.",
        f"It hears whole utterances at {recipe.features.sampling_rate / 1000:g} kHz, nothing while they are "
        "spoken; silence is left out, and a longer recording is cut at its pauses, into at most 30 s each.",
        "A confidence is the decoder's own probability, not checked against how often it is right.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def parameters(recogniser: Recogniser) -> int:
    """Of the shipped model."""
    return sum(each.numel() for each in recogniser.student.parameters())
