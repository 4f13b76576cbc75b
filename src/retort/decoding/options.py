"""Decoding options of `retort evaluate` and `retort transcribe`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retort.common.errors import UserError
from retort.common.json_reader import read_json
from retort.config.ranges import check_ranges, number

KINDS = ("auto", "causal", "masked")
CASES = ("keep", "upper", "lower")
VADS = ("energy", "silero", "none")
MODES = ("own", "joint", "ctc", "attention_rescoring", "ctc_rescoring")
RESCORING = {"attention_rescoring": "decoder", "ctc_rescoring": "CTC head"}
"""Modes that rescore an n-best list, and the part of the model that rescores it."""
CTC_WEIGHT = 0.3


@dataclass(frozen=True)
class DecodingOptions:
    """The width of the search, the language models, and the size of the n-best list.

    Attributes:
        beam: number of hypotheses; 1 is greedy decoding.
        nbest: number of hypotheses in the n-best list, at most `beam`.
        lm: folder of a causal language model over the student's tokens, for shallow fusion.
        lm_weight: weight of the LM's log-probabilities for shallow fusion; the student's weight is 1.
        rescore: folder or Hugging Face name of a language model that rescores the n-best list.
        rescore_kind: `causal`, `masked` (pseudo-log-likelihood), or `auto`: detected from the checkpoint.
        rescore_case: case of the text for a pretrained LM: `keep`, `upper` or `lower`.
        rescore_weight: weight of the rescoring LM's log-probability of the whole sentence.
        length_weight: a score added for every token of a hypothesis. CTC, attention and transducer students
            use it in the search and in rescoring, CIF students only in rescoring. For a transducer with at
            most one token a frame it has the effect of a blank penalty.
        mode: the search. `own`: that of the student. `ctc`: of the CTC head alone. `joint` (CIF students):
            with the CTC prefix score at every token. `attention_rescoring` (attention students, and CIF
            students whose fires are those of the CTC head): the n-best list of the CTC head, rescored by the
            decoder. `ctc_rescoring` (CIF and transducer students): the n-best list of the student, rescored
            by the CTC head.
        ctc_weight: weight of the CTC head's log-probabilities where they are combined with those of a
            decoder, whose weight is 1 - ctc_weight.
        graph: folder of a word n-gram model: the CTC head is decoded with a TLG graph built from it, and the
            beam is the length of the n-best list.
        acoustic_scale: scale of the student's scores in a decoding graph; 0 selects the hybrid model's own
            scale, or 1 for a CTC head.
        vad: voice activity detection: `energy`, `silero` (the packaged network), or `none` (silence is
            decoded, too).
        no_speech_threshold: a segment is empty where its no-speech probability is above this; 0 selects the
            model's own threshold, 1 keeps all words.

    Raises:
        UserError: a number is out of its range, a value is unknown, or a weight is given without its model.
    """

    beam: int = number(1, 1, 10_000)
    nbest: int = number(1, 1, 10_000)
    lm: str = ""
    lm_weight: float = number(0.0, 0, 1000)
    rescore: str = ""
    rescore_kind: str = "auto"
    rescore_case: str = "keep"
    rescore_weight: float = number(0.0, 0, 1000)
    length_weight: float = number(0.0, -1000, 1000)
    graph: str = ""
    acoustic_scale: float = number(0.0, 0, 1000)
    mode: str = "own"
    ctc_weight: float = number(CTC_WEIGHT, 0, 1)
    vad: str = "energy"
    no_speech_threshold: float = number(0.0, 0, 1)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.nbest > self.beam:
            raise UserError(
                f"nbest {self.nbest} is larger than the beam of {self.beam}",
                remedy=f"Give a beam of at least {self.nbest}",
            )
        for name, word, allowed in (
            ("rescore kind", self.rescore_kind, KINDS),
            ("rescore case", self.rescore_case, CASES),
            ("mode", self.mode, MODES),
            ("speech detection (vad)", self.vad, VADS),
        ):
            if word not in allowed:
                raise UserError(f"{name} is '{word}'", remedy=f"Choose one of {', '.join(allowed)}")
        if self.mode in RESCORING and self.beam == 1:
            raise UserError(
                f"greedy decoding gives one hypothesis, so the {RESCORING[self.mode]} has nothing to rescore",
                remedy="Give a beam of 2 or more",
            )
        if self.mode == "joint" and self.ctc_weight == 1.0:
            raise UserError("ctc weight is 1 in a joint search", remedy="Give less, or --mode ctc")
        if self.graph and (self.lm or self.rescore):
            raise UserError(
                "a decoding graph contains its language model and cannot be combined with another",
                remedy="Give --graph alone, or --lm and --rescore without --graph",
            )
        if self.graph and self.mode != "own":
            raise UserError(
                f"mode is {self.mode}, but a decoding graph is searched with the CTC head alone",
                remedy="Leave --mode out",
            )
        self._check_weights()

    def _check_weights(self) -> None:
        for name, weight, model in (
            ("lm weight", self.lm_weight, self.lm),
            ("rescore weight", self.rescore_weight, self.rescore),
        ):
            if weight and not model:
                raise UserError(f"{name} is {weight:g}, but no model is given", remedy="Give the model")
        if self.graph and self.length_weight:
            raise UserError(
                f"length weight is {self.length_weight:g}, but the costs of a decoding graph include the length of the text",
                remedy="Leave --length-weight out",
            )
        if self.rescore and self.beam == 1:
            raise UserError(
                "greedy decoding gives one hypothesis, so there is nothing to rescore",
                remedy="Give a beam of 2 or more",
            )

    @property
    def suffix(self) -> str:
        """Suffix of a system's name in lists of results."""
        mode = f"+{self.mode}" * (self.mode != "own")
        models = "+lm" * bool(self.lm) + "+rescore" * bool(self.rescore) + "+graph" * bool(self.graph)
        return mode + models + "+length" * self._length_alone

    @property
    def label(self) -> str:
        """A short name of mode, beam and models, empty for greedy decoding.

        Weights are not in it, except a hybrid's acoustic scale and a length weight without a model, so that
        the results of different values do not overwrite each other.
        """
        parts = [self.mode] * (self.mode != "own")
        parts += [f"beam{self.beam}"] if self.beam > 1 or self.lm or self.graph else []
        parts += [f"lm.{_short(self.lm)}"] * bool(self.lm)
        parts += [f"rescore.{_short(self.rescore)}"] * bool(self.rescore)
        parts += [f"graph.{_short(self.graph)}"] * bool(self.graph)
        parts += [f"scale{self.acoustic_scale:g}"] * (self.acoustic_scale > 0 and not self.graph)
        parts += [f"length{self.length_weight:g}"] * self._length_alone
        parts += [f"vad.{self.vad}"] * (self.vad != "energy")
        parts += [f"no_speech{self.no_speech_threshold:g}"] * (self.no_speech_threshold > 0)
        return "+".join(parts)

    @property
    def _length_alone(self) -> bool:
        """Whether there is a length weight without a language model."""
        return bool(self.length_weight) and not (self.lm or self.rescore)


GREEDY = DecodingOptions()


def read_options(path: str | Path) -> DecodingOptions:
    """Read options from a JSON file, such as `retort tune` writes; other keys are ignored.

    Raises:
        UserError: the file does not exist, has no options, or has invalid values.
    """
    remedy = "Give the tuned.json that `retort tune` wrote"
    try:
        content = read_json(path)
        known = {name: type(value) for name, value in asdict(GREEDY).items()}
        values: dict[str, Any] = {key: known[key](content[key]) for key in content if key in known}
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", where=path, remedy=remedy) from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"not decoding options ({error})", where=path, remedy=remedy) from None
    if "beam" not in values:
        raise UserError("not decoding options (no beam)", where=path, remedy=remedy)
    try:
        return DecodingOptions(**values)
    except UserError as error:
        raise UserError(error.what, where=path, remedy=error.remedy) from None


def options_to_dict(options: DecodingOptions) -> dict[str, Any]:
    """Content for :func:`read_options`; settings of models that are not given are left out."""
    content = asdict(options)
    if not options.lm:
        content = {key: value for key, value in content.items() if not key.startswith("lm")}
    if not options.rescore:
        content = {key: value for key, value in content.items() if not key.startswith("rescore")}
        if not options.length_weight:
            del content["length_weight"]
    for name in ("graph", "acoustic_scale", "mode", "ctc_weight", "vad", "no_speech_threshold"):
        if content[name] == getattr(GREEDY, name):
            del content[name]
    return content


def _short(model: str) -> str:
    """The last part of a path or name that distinguishes one model from another."""
    parts = [part for part in Path(model).parts if part not in ("/", ".", "..", "model")]
    return parts[-1] if parts else "model"
