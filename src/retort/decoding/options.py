"""How to decode: the options of `retort evaluate` and `retort transcribe`."""

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
"""Modes that rank a list anew, and what does it."""
CTC_WEIGHT = 0.3


@dataclass(frozen=True)
class DecodingOptions:
    """How wide to search, which language models have a say, and how much of what was found to tell.

    Attributes:
        beam: hypotheses kept of an utterance; 1 is greedy decoding.
        nbest: readings told of an utterance, the best first; at most `beam`.
        lm: folder of a causal language model over the student's pieces that joins the search (shallow fusion).
        lm_weight: of its log-probabilities, the student's having 1.
        rescore: folder or Hugging Face name of a language model that ranks what the search kept anew.
        rescore_kind: `causal`, `masked` (pseudo-log-likelihood), or `auto`: as the model itself says.
        rescore_case: of the text that a pretrained one reads: `keep`, `upper` or `lower`.
        rescore_weight: of its log-probability of the whole sentence.
        length_weight: added for every piece of the student's in a hypothesis: of CTC, attention and transducer students
            in the search and in what ranks anew, of a CIF student where it is ranked anew. Of a transducer that says
            one token a frame it is what others take from the log-probability of a blank.
        mode: which search: the student's `own`; `ctc`, with its CTC head alone; for CIF students `joint`, with the CTC
            prefix score at every token; for attention students, and CIF students whose fires are the CTC head's,
            `attention_rescoring`: the CTC head's n-best list, rescored by the decoder; for CIF and transducer students
            `ctc_rescoring`: their n-best list, rescored by the CTC head.
        ctc_weight: weight of the CTC head's log-probabilities wherever it is combined with a decoder, whose weight is the
            rest to 1.
        graph: folder of an n-gram model over words: the student's CTC head is heard through a decoding graph of it,
            and the beam is how many readings are kept.
        acoustic_scale: of a student's scores against its decoding graph; 0 takes the hybrid model's own, of a CTC
            head 1.
        vad: speech detection: `energy`, `silero` (the packaged network), or `none`: silence is decoded as well.
        no_speech_threshold: a segment has no words where its probability of no speech is above it; 0 takes the
            model's own, and with 1 the words stay.

    Raises:
        UserError: a number that cannot be, an unknown word, or a weight without its model.
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
                f"nbest {self.nbest} is more than the beam of {self.beam} keeps",
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
                f"greedy decoding keeps one hypothesis, which the {RESCORING[self.mode]} cannot rank anew",
                remedy="Give a beam of 2 or more",
            )
        if self.mode == "joint" and self.ctc_weight == 1.0:
            raise UserError("ctc weight is 1 in a joint search", remedy="Give less, or --mode ctc")
        if self.graph and (self.lm or self.rescore):
            raise UserError(
                "a decoding graph has its language model in it, another cannot join",
                remedy="Give --graph alone, or --lm and --rescore without it",
            )
        if self.graph and self.mode != "own":
            raise UserError(
                f"mode is {self.mode}, but a decoding graph asks the CTC head alone",
                remedy="Leave --mode out",
            )
        self._check_weights()

    def _check_weights(self) -> None:
        for name, weight, model in (
            ("lm weight", self.lm_weight, self.lm),
            ("rescore weight", self.rescore_weight, self.rescore),
        ):
            if weight and not model:
                raise UserError(f"{name} is {weight:g}, but no model is named for it", remedy="Name one")
        if self.graph and self.length_weight:
            raise UserError(
                f"length weight is {self.length_weight:g}, but a decoding graph weighs its words itself",
                remedy="Leave --length-weight out",
            )
        if self.rescore and self.beam == 1:
            raise UserError(
                "greedy decoding keeps one hypothesis, which cannot be ranked anew",
                remedy="Give a beam of 2 or more",
            )

    @property
    def suffix(self) -> str:
        """What stands behind a system's name in lists of results."""
        mode = f"+{self.mode}" * (self.mode != "own")
        models = "+lm" * bool(self.lm) + "+rescore" * bool(self.rescore) + "+graph" * bool(self.graph)
        return mode + models + "+length" * self._length_alone

    @property
    def label(self) -> str:
        """A short name of mode, beam and models, empty for greedy decoding; weights are not in it.

        But a hybrid's acoustic scale is, and a weight of length without a model, so that such scores do not take the
        place of those without.
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
        """Whether length has a weight without a language model that needs one."""
        return bool(self.length_weight) and not (self.lm or self.rescore)


GREEDY = DecodingOptions()


def read_options(path: str | Path) -> DecodingOptions:
    """The options in a JSON file, such as `retort tune` writes; what is not an option is left aside.

    Raises:
        UserError: no such file, no options in it, or values that cannot be.
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
    """The content that :func:`read_options` takes; of models that are not named, nothing."""
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
    """The last part of a folder's path, or of a name, that tells one from another."""
    parts = [part for part in Path(model).parts if part not in ("/", ".", "..", "model")]
    return parts[-1] if parts else "model"
