"""Export of a model with its scores and its README."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from retort.common.checksums import seal
from retort.corpora.cuts import CheckedCuts
from retort.decoding.recogniser import Recogniser
from retort.export.onnx_model import export_onnx, quantise_folder
from retort.export.readme import write_readme
from retort.export.scores import EngineScore, Recognise, check_scores, recognise_with, score_engine
from retort.export.sherpa import export_sherpa
from retort.export.sherpa_online import export_online, online_chunk
from retort.runtime.folder import is_export, read_export
from retort.runtime.recogniser import load_export


@dataclass
class Exported:
    """Result of :func:`export_scored`.

    Attributes:
        measure: `wer`, or `cer` for a model whose texts have no spaces.
        scores: error rates by engine, torch first; empty without a test set.
        notes: limits of the export.
    """

    measure: str
    scores: dict[str, EngineScore] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def check(self) -> None:
        """Compare the scores, as :func:`retort.export.scores.check_scores`."""
        check_scores(self.scores, self.measure)


def export_scored(
    recogniser: Recogniser,
    out: Path,
    engine: str,
    *,
    int8: bool = False,
    chunk: int | None = None,
    cuts: CheckedCuts | None = None,
    data: str = "",
) -> Exported:
    """Export a model, and score it with the engine that will run it.

    Args:
        recogniser: the model.
        out: created if missing.
        engine: `onnx` or `sherpa-onnx`.
        int8: quantise the matrix products.
        chunk: for sherpa-onnx, frames of the chunks of a model that recognises audio while it arrives; 0 for one of whole
            utterances; None: the smallest of the training, 0 for a model that was not trained in chunks.
        cuts: test set; None leaves out the scores.
        data: name of the test set.

    Raises:
        UserError: the model has no form for this engine, or a package is missing.
    """
    exported = Exported("wer" if recogniser.separator else "cer")
    onnx = engine == "onnx"
    if onnx:
        export_onnx(recogniser, out)
        lead, commands = (
            "A CIF model for ONNX Runtime, which `retort` runs without torch.",
            [
                "pip install 'retort-asr[runtime]'",
                f"retort transcribe {out} recording.flac",
            ],
        )
    else:
        size = online_chunk(recogniser, chunk)
        sherpa = export_online(recogniser, out, size) if size else export_sherpa(recogniser, out)
        lead, commands, exported.notes = sherpa.lead, sherpa.commands, sherpa.notes

    def score(name: str, opened: Callable[[], Recognise]) -> None:
        if cuts is not None:
            exported.scores[name] = score_engine(
                opened(), cuts, recogniser.normalise, recogniser.sampling_rate
            )

    def engine_of() -> Recognise:
        return recognise_with(load_export(out)) if onnx else sherpa.recognise()

    score("torch", lambda: recognise_with(recogniser) if onnx else sherpa.torch)
    score(engine, engine_of)
    if int8:
        quantise_folder(out)
        score("int8", engine_of)
    write_readme(out, lead, commands, exported.scores, data, exported.notes)
    if is_export(out):
        model = replace(
            read_export(out), scores={name: each.to_dict() for name, each in exported.scores.items()}
        )
        model.save(out)
        seal(out)
    return exported
