"""The model card of a release in the format of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from retort import __version__
from retort.common.errors import UserError
from retort.config.schema import NormaliserConfig, Recipe
from retort.decoding.confidence import AS_DECODED
from retort.decoding.recogniser import Recogniser
from retort.evaluation.bootstrap import compare
from retort.evaluation.evaluate import Evaluation, data_name
from retort.info.describe import outline
from retort.pretrained.catalogue import load_catalogue
from retort.release.lineage import Lineage, distillation, inside, teacher_name, training_data
from retort.report.document import Block, Paragraph, Section, Table, section_to_markdown

TASK = "automatic-speech-recognition"
MEASURES = ("wer", "cer")


@dataclass(frozen=True)
class Terms:
    """Properties of a model that are not in its recipe.

    Attributes:
        licence: licence of the weights; an SPDX identifier (`Apache-2.0`) or text.
        language: language of the model, ISO 639-1 (`en`).
        notes: notes on the data, one line each.

    Raises:
        UserError: the language is not a code, or the licence is empty.
    """

    licence: str
    language: str
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch("[a-z]{2,3}", self.language):
            raise UserError(f"the language is '{self.language}'", remedy="Use its ISO 639 code, such as en")
        if not self.licence.strip():
            raise UserError("the licence is empty", remedy="Use an identifier such as Apache-2.0, or text")


@dataclass(frozen=True)
class Compared:
    """Another model that the card compares the release with.

    Attributes:
        recipe: recipe of its last training.
        evaluations: its evaluations on the data of the release's, in the same order.
    """

    recipe: Recipe
    evaluations: Sequence[Evaluation]


def model_card(
    path: str,
    recogniser: Recogniser,
    lineage: Lineage,
    terms: Terms,
    evaluations: Sequence[Evaluation],
    commit: str,
    stored: str = "float16",
    compared: Sequence[Compared] = (),
) -> str:
    """The card as Markdown with a YAML header.

    Args:
        path: path of the release's folder in the examples; its last part is the name of the model.
        recogniser: recogniser of the release.
        lineage: recipes of its trainings.
        terms: licence, language and notes.
        evaluations: evaluations of the release.
        commit: commit of the code; may be empty.
        stored: how the weights are stored.
        compared: other models to compare it with.
    """
    name, recipe = path.rpartition("/")[2], lineage.recipes[-1]
    sections = [
        Section("Use", [Paragraph(_use(path), markdown=True)]),
        Section("Errors", _errors(path, evaluations, recipe)),
        *_comparison(evaluations, compared),
        *_confidence(recogniser, evaluations),
        Section("Training", _training(lineage, commit)),
        Section("Data and licence", _data(terms)),
        Section("Architecture", [Paragraph(_architecture(recogniser, recipe), markdown=True)]),
        Section("Limits", [Paragraph(_limits(recogniser.normalise.config, recipe, terms), markdown=True)]),
    ]
    body = [f"# {name}", _lead(recogniser, recipe, stored), *map(section_to_markdown, sections)]
    return f"---\n{_head(name, recipe, terms, evaluations)}\n---\n\n" + "\n\n".join(body) + "\n"


def _head(name: str, recipe: Recipe, terms: Terms, evaluations: Sequence[Evaluation]) -> str:
    licence, other = terms.licence.lower(), None
    if not re.fullmatch(r"[a-z0-9.-]+", licence):  # the hub's word for any other licence
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
    """Hub name and licence of the pretrained encoder that training started from, if known."""
    model = recipe.student.encoder.model
    if not model:
        return None
    entry = load_catalogue().get(Path(model).name)
    return (entry.hub, entry.licence) if entry else (model, "see there")


def _lead(recogniser: Recogniser, recipe: Recipe, stored: str) -> str:
    teachers = sorted({row.teacher for row in recipe.distill if row.teacher})
    names = ", ".join(teacher_name(recipe, each).rpartition("/")[2] for each in teachers)
    how = f"distilled from the language model {names}, which is not needed for inference" if names else "no teacher"
    parts = inside(recipe)
    began = f" Its decoder was initialised with weights of {parts}." if parts else ""
    if origin := encoder_origin(recipe):
        whole = recipe.student.has_whisper_decoder
        initialised = "encoder and decoder were initialised with those" if whole else "encoder was initialised with that"
        began += f" Its {initialised} of {origin[0]} (licence: {origin[1]})."
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
    explanation = (
        f"Greedy decoding with the weights of this folder, as by `retort evaluate {path} DATA`. Intervals are "
        f"over speakers (bootstrap); they do not include the variation over training seeds (this one is {recipe.seed})."
    )
    return [Table(header, rows), *notes, Paragraph(explanation)]


def _comparison(evaluations: Sequence[Evaluation], compared: Sequence[Compared]) -> list[Section]:
    """Paired differences from other models; no section without any."""
    rows = []
    for other in compared:
        for own, its in zip(evaluations, other.evaluations, strict=True):
            if not own.score.words.reference:
                continue
            cells = []
            for measure in MEASURES:
                found = compare(its.score, own.score, measure=measure)
                difference = f"{found.difference:+.2%} ({found.low:+.2%} to {found.high:+.2%}), p {found.p:.2g}"
                cells += [f"{found.first:.2%}", difference]
            rows.append([other.recipe.name, distillation(other.recipe) or "none", own.split, *cells])
    if not rows:
        return []
    header = ("recipe", "distilled from", "data", *(part for each in MEASURES for part in (each.upper(), "difference")))
    explanation = (
        "Other models on the same data, their weights stored in the same way, and the difference of this model from "
        "them (a negative one: this model has fewer errors). Intervals of 95 % and p values are paired, over speakers "
        "(bootstrap), or over utterances where there is only one; they do not include the variation over training seeds."
    )
    return [Section("Comparison", [Table(header, rows, prose=True), Paragraph(explanation)])]


def _confidence(recogniser: Recogniser, evaluations: Sequence[Evaluation]) -> list[Section]:
    """Reliability of word confidences; no section without evaluations that have it."""
    rows = []
    for each in evaluations:
        if (found := each.reliability) is not None:
            ece, nce = found.ece_range, found.nce_range
            ranges = f"{ece[0]:.2%} to {ece[1]:.2%}", f"{nce[0]:.3f} to {nce[1]:.3f}"
            rows.append([each.split, f"{found.ece:.2%}", ranges[0], f"{found.nce:.3f}", ranges[1], f"{found.words:,}"])
    if not rows:
        return []
    own = recogniser.calibration
    how = (
        "Confidences of words are probabilities of the decoder and are not calibrated."
        if own == AS_DECODED
        else f"Confidences of words are calibrated with temperature {own.temperature:.3g} and bias {own.bias:.3g}, chosen "
        "on other data (`retort tune --confidence`)."
    )
    meaning = (
        "ECE: mean distance between the confidence and the share of correct words (0 is best). NCE: normalised "
        "cross-entropy (1 is best; 0: no better than the share of correct words for each). Intervals are over speakers."
    )
    header = ("data", "ECE", "95 %", "NCE", "95 %", "words")
    return [Section("Confidence", [Table(header, rows), Paragraph(f"{how} {meaning}")])]


def _training(lineage: Lineage, commit: str) -> list[Block]:
    rows = [
        [each.name, training_data(each), f"{each.training.steps:,}", str(each.seed), distillation(each) or "none"]
        for each in lineage.recipes
    ]
    last = lineage.recipes[-1]
    average = f"up to {last.training.checkpoints} checkpoints, the {last.training.keep}"
    if last.training.keep == "best":
        average += f" on {', '.join(data_name(Path(each)) for each in last.data.validation)}"
    lines = [f"Each training starts from the weights of the previous one; the last model is the average of {average}."]
    if len(rows) == 1:
        lines = [f"The weights are the average of {average}."]
    if lineage.origin:
        lines.append(f"The first training started from the weights of {lineage.origin}, whose recipe is not available.")
    made = f"Released with Retort {__version__}{f', commit {commit}' if commit else ''}"
    lines.append(f"{made}; `recipe.json` has the settings of the last.")
    return [
        Table(("recipe", "trained on", "steps", "seed", "distilled from"), rows, prose=True),
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
    cases = {"upper": "in upper case", "lower": "in lower case", "keep": "in the case of its transcripts"}
    writes = cases[normaliser.case]
    if normaliser.punctuation == "drop":
        writes += f", without punctuation{f' except {normaliser.kept}' if normaliser.kept else ''}"
    pretrained = " (its initial weights were trained on other data)" if encoder_origin(recipe) else ""
    lines = [
        f"Retort trained it only on the data above{pretrained}: expect more errors for other voices, accents, rooms, "
        f"microphones and topics, and no useful output for languages other than {terms.language}.",
        f"Its output is {writes}.",
        f"It is not a streaming model: it recognises whole utterances at {recipe.features.sampling_rate / 1000:g} kHz. "
        "Silence is removed, and longer recordings are divided at pauses into segments of at most 30 s.",
        "Confidences of tokens are probabilities of the decoder and are not calibrated.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def parameters(recogniser: Recogniser) -> int:
    """Number of parameters of the model."""
    return sum(each.numel() for each in recogniser.student.parameters())
