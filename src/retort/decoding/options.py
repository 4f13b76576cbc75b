"""Decoding options: each is one field of :class:`DecodingOptions`, and everything else is made from the fields.

A field has its documentation, default, range or choices, the kinds of students that it applies to, and what it adds to
the names of results. The options of `retort evaluate`, `transcribe`, `tune`, `label` and `serve`, the keyword arguments
of `retort.load` and `Recogniser.transcribe`, the checks and `docs/decoding_options.md` follow from them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
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
HOTWORD_WEIGHT = 1.0
TOKEN_STUDENTS = ("cif", "ctc", "attention", "transducer", "whisper")
"""Kinds of students whose searches output tokens of their vocabulary; a hybrid student outputs words of its graph."""
HEADED_STUDENTS = ("cif", "ctc", "attention", "transducer")
"""Kinds of students that can have a CTC head over their vocabulary."""

STUDENTS = (*TOKEN_STUDENTS, "hybrid")

_KEY = "option"
Names = Callable[[Any], str]


def _nothing(options: DecodingOptions) -> str:
    return ""


@dataclass(frozen=True)
class Option:
    """What a field of :class:`DecodingOptions` has in addition to its type, default and range.

    Attributes:
        text: documentation: help of the command line, and entry of `docs/decoding_options.md`.
        metavar: name of the value in help.
        choices: permitted values of a string; empty for any.
        students: kinds of students that the option applies to; empty for all.
        listed: whether the value is a file, or in Python a sequence of its lines.
        model: the option that names the model or list that this one configures. Without it this option has no
            effect, which is an error unless `alone` is set.
        alone: whether the option has an effect without its `model`, too.
        stated: whether the option must be given when its `model` is, because no default is useful.
        tuned: whether `retort tune` chooses the value, so that it does not take the option.
        with_tuned: whether the option can be given together with a file of `retort tune`.
        suffix: what the option adds to the name of a system in results, such as `+lm`.
        label: what the option adds to :attr:`DecodingOptions.label`, such as `beam10`.
        rank: order in suffixes and labels, then that of the fields.
    """

    text: str
    metavar: str = ""
    choices: tuple[str, ...] = ()
    students: tuple[str, ...] = ()
    listed: bool = False
    model: str = ""
    alone: bool = False
    stated: bool = False
    tuned: bool = False
    with_tuned: bool = False
    suffix: Names = _nothing
    label: Names = _nothing
    rank: int = 1


def option(default: Any, text: str, limits: tuple[float, float] | None = None, **more: Any) -> Any:
    """A field of :class:`DecodingOptions`.

    Args:
        default: its default.
        text: its documentation, full sentences.
        limits: smallest and largest value of a number.
        more: attributes of :class:`Option`.
    """
    metadata = dict(number(default, *limits).metadata) if limits is not None else {}
    return field(default=default, metadata={**metadata, _KEY: Option(text, **more)})


def option_of(each: Field[Any]) -> Option:
    """The properties of a field of :class:`DecodingOptions`."""
    found: Option = each.metadata[_KEY]
    return found


def flag(name: str) -> str:
    """The option of the command line for a field: `--lm-weight` for `lm_weight`."""
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True)
class DecodingOptions:
    """The search, the language models, the length of the n-best list, and the treatment of silence.

    The fields are documented where they are declared (:func:`option`) and in `docs/decoding_options.md`.

    Raises:
        UserError: a number is out of its range, a value is unknown, options exclude each other, or an option is given
            without the model that it configures.
    """

    beam: int = option(
        1,
        "Beam width: the number of hypotheses that the search keeps. 1 is greedy search.",
        (1, 10_000),
        label=lambda own: f"beam{own.beam}" if own.beam > 1 or own.lm or own.graph else "",
    )
    nbest: int = option(
        1,
        "Length of the n-best list in JSON output, at most the beam width.",
        (1, 10_000),
        with_tuned=True,
    )
    lm: str = option(
        "",
        "Language model for shallow fusion, over the student's tokens: the exp/NAME of retort lm train.",
        metavar="FOLDER",
        students=TOKEN_STUDENTS,
        suffix=lambda own: "+lm" * bool(own.lm),
        label=lambda own: f"lm.{_short(own.lm)}" if own.lm else "",
    )
    lm_weight: float = option(
        0.0,
        "Weight of the LM's log-probabilities for shallow fusion; the student's weight is 1.",
        (0, 1000),
        students=TOKEN_STUDENTS,
        model="lm",
        stated=True,
        tuned=True,
    )
    rescore: str = option(
        "",
        "Language model that rescores the n-best list: an exp/NAME of retort lm train, or the folder or Hugging Face "
        "name of a pretrained model.",
        metavar="MODEL",
        students=TOKEN_STUDENTS,
        suffix=lambda own: "+rescore" * bool(own.rescore),
        label=lambda own: f"rescore.{_short(own.rescore)}" if own.rescore else "",
    )
    rescore_kind: str = option(
        "auto",
        "Type of a pretrained rescoring LM: causal, masked (pseudo-log-likelihood), or auto: detected from the "
        "checkpoint.",
        choices=KINDS,
        students=TOKEN_STUDENTS,
        model="rescore",
    )
    rescore_case: str = option(
        "keep",
        "Case of the text that a pretrained rescoring LM scores.",
        choices=CASES,
        students=TOKEN_STUDENTS,
        model="rescore",
    )
    rescore_weight: float = option(
        0.0,
        "Weight of the rescoring LM's log-probability of the whole sentence.",
        (0, 1000),
        students=TOKEN_STUDENTS,
        model="rescore",
        stated=True,
        tuned=True,
    )
    hotwords: str | tuple[str, ...] = option(
        "",
        "Hotwords, which the search prefers: a text file with one word or phrase per line, optionally followed by a tab "
        "and the weight of this phrase; in Python also a list of such lines. The beam width is then at least 4.",
        metavar="FILE",
        students=TOKEN_STUDENTS,
        listed=True,
        with_tuned=True,
        suffix=lambda own: "+hotwords" * bool(own.hotwords),
        label=lambda own: f"hotwords.{own.hotwords_name}" if own.hotwords else "",
    )
    hotword_weight: float = option(
        HOTWORD_WEIGHT,
        "Score of a hotword for each token of its shortest tokenisation. What a phrase has added is taken back if it is "
        "not completed.",
        (0, 100),
        students=TOKEN_STUDENTS,
        model="hotwords",
        with_tuned=True,
    )
    length_weight: float = option(
        0.0,
        "Score added for each token of a hypothesis: in the search and in rescoring, for CIF students only in "
        "rescoring. For a transducer with at most one token per frame it has the effect of a blank penalty.",
        (-1000, 1000),
        students=TOKEN_STUDENTS,
        model="rescore",
        alone=True,
        tuned=True,
        suffix=lambda own: "+length" * own.length_alone,
        label=lambda own: f"length{own.length_weight:g}" if own.length_alone else "",
        rank=3,
    )
    graph: str = option(
        "",
        "N-gram LM over words (retort lm train): the CTC head is decoded with a TLG graph built from it. The beam width "
        "is then the maximum length of the n-best list.",
        metavar="FOLDER",
        students=HEADED_STUDENTS,
        suffix=lambda own: "+graph" * bool(own.graph),
        label=lambda own: f"graph.{_short(own.graph)}" if own.graph else "",
    )
    acoustic_scale: float = option(
        0.0,
        "Scale of the student's scores relative to those of the decoding graph. 0 selects the tuned scale stored with a "
        "hybrid model, and 1 for a CTC head.",
        (0, 1000),
        students=("hybrid", *HEADED_STUDENTS),
        tuned=True,
        # The scale of a graph that is named is a weight, and weights are not in labels.
        label=lambda own: f"scale{own.acoustic_scale:g}" if own.acoustic_scale and not own.graph else "",
        rank=2,
    )
    language_scale: float = option(
        0.0,
        "Scale of the language part of a decoder with student.decoder.kind: factored. 0 selects the scale that it was "
        "trained with.",
        (0, 1000),
        students=("cif",),
        tuned=True,
        label=lambda own: f"language{own.language_scale:g}" if own.language_scale else "",
        rank=3,
    )
    mode: str = option(
        "own",
        "The search. own: that of the student. ctc: the CTC head alone. joint (CIF students): beam search with the CTC "
        "prefix score at every token. attention_rescoring (attention students, and CIF students with cif.fires: ctc): "
        "the decoder rescores the n-best list of the CTC head. ctc_rescoring (CIF and transducer students): the CTC "
        "head rescores the n-best list of the student.",
        choices=MODES,
        students=HEADED_STUDENTS,
        suffix=lambda own: f"+{own.mode}" if own.mode != "own" else "",
        label=lambda own: own.mode if own.mode != "own" else "",
        rank=0,
    )
    ctc_weight: float = option(
        CTC_WEIGHT,
        "Weight of the CTC head's log-probabilities where they are combined with those of a decoder, whose weight is 1 "
        "minus this one: in the search of attention students, and in the modes joint, attention_rescoring and "
        "ctc_rescoring.",
        (0, 1),
        students=("cif", "attention", "transducer"),
    )
    vad: str = option(
        "energy",
        "Voice activity detection: energy, silero (the packaged network; install the extra vad), or none: silence is "
        "decoded, too.",
        choices=VADS,
        with_tuned=True,
        label=lambda own: f"vad.{own.vad}" if own.vad != "energy" else "",
        rank=4,
    )
    no_speech_threshold: float = option(
        0.0,
        "No-speech probability above which the words of a segment are removed; 1 removes nothing. 0 selects the "
        "threshold that retort tune --noise stored with the model.",
        (0, 1),
        with_tuned=True,
        label=lambda own: f"no_speech{own.no_speech_threshold:g}" if own.no_speech_threshold else "",
        rank=4,
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            if option_of(each).listed and not isinstance(value := getattr(self, each.name), str):
                object.__setattr__(self, each.name, _lines(each.name, value))
        check_ranges(self)
        self._check_fields()
        if self.nbest > self.beam:
            raise UserError(
                f"nbest {self.nbest} is larger than the beam of {self.beam}",
                remedy=f"Give a beam of at least {self.nbest}",
            )
        if self.beam == 1 and (self.rescore or self.mode in RESCORING):
            part = RESCORING.get(self.mode, "language model")
            raise UserError(
                f"greedy decoding gives one hypothesis, so the {part} has nothing to rescore",
                remedy="Give a beam of 2 or more",
            )
        if self.mode == "joint" and self.ctc_weight == 1.0:
            raise UserError("ctc weight is 1 in a joint search", remedy="Give less, or --mode ctc")
        if self.graph:
            self._check_graph()

    def _check_fields(self) -> None:
        """Check choices, and that no option is given without the model that it configures."""
        for each in fields(self):
            own, value, name = option_of(each), getattr(self, each.name), each.name.replace("_", " ")
            if isinstance(each.default, str) and not isinstance(value, str) and not own.listed:
                raise UserError(f"{name} is {_shown(value)}", remedy="Give a string")
            if own.choices and value not in own.choices:
                raise UserError(f"{name} is '{value}'", remedy=f"Choose one of {', '.join(own.choices)}")
            if own.model and not own.alone and value != each.default and not getattr(self, own.model):
                raise UserError(
                    f"{name} is {_shown(value)}, but no model is given",
                    remedy=f"Add {flag(own.model)}, or leave {flag(each.name)} out",
                )

    def _check_graph(self) -> None:
        if self.hotwords:
            raise UserError("a decoding graph is searched without hotwords", remedy="Leave --hotwords or --graph out")
        if self.lm or self.rescore:
            raise UserError(
                "a decoding graph contains its language model and cannot be combined with another",
                remedy="Give --graph alone, or --lm and --rescore without --graph",
            )
        if self.mode != "own":
            raise UserError(
                f"mode is {self.mode}, but a decoding graph is searched with the CTC head alone",
                remedy="Leave --mode out",
            )
        if self.length_weight:
            raise UserError(
                f"length weight is {self.length_weight:g}, but the costs of a decoding graph include the length of the text",
                remedy="Leave --length-weight out",
            )

    def check_student(self, kind: str) -> None:
        """Check that the options apply to a kind of student.

        Raises:
            UserError: names the first one that does not.
        """
        for each in fields(self):
            own, value = option_of(each), getattr(self, each.name)
            if own.students and kind not in own.students and value != each.default:
                article = "an" if kind == "attention" else "a"
                raise UserError(
                    f"{each.name.replace('_', ' ')} is {_shown(value)}, but this option does not apply to "
                    f"{article} {kind} student",
                    remedy=f"Leave {flag(each.name)} out; it applies to {', '.join(own.students)}",
                )

    @property
    def suffix(self) -> str:
        """Suffix of a system's name in lists of results."""
        return "".join(option_of(each).suffix(self) for each in self._ranked())

    @property
    def label(self) -> str:
        """A short name of mode, beam and models, empty for greedy decoding.

        Weights are not in it, except a hybrid's acoustic scale and a length weight without a model, so that
        the results of different values do not overwrite each other.
        """
        return "+".join(filter(None, (option_of(each).label(self) for each in self._ranked())))

    @property
    def length_alone(self) -> bool:
        """Whether there is a length weight without a language model."""
        return bool(self.length_weight) and not (self.lm or self.rescore)

    @property
    def hotwords_name(self) -> str:
        """The name of the file of hotwords, or a hash of the list."""
        if isinstance(self.hotwords, str):
            return Path(self.hotwords).stem
        return hashlib.sha256("\n".join(self.hotwords).encode()).hexdigest()[:8]

    def _ranked(self) -> list[Field[Any]]:
        return sorted(fields(self), key=lambda each: option_of(each).rank)


GREEDY = DecodingOptions()


def make_options(given: Mapping[str, Any], base: DecodingOptions = GREEDY) -> DecodingOptions:
    """`base` with the given options, by the names of their fields.

    Raises:
        UserError: a name or a value is unknown, or a weight is missing.
    """
    known = {each.name: each for each in fields(base)}
    for name in given:
        if name not in known:
            raise UserError(f"there is no decoding option '{name}'", remedy=f"Choose from {', '.join(known)}")
    for name, each in known.items():
        own = option_of(each)
        if own.stated and name not in given and given.get(own.model) and not getattr(base, own.model):
            raise UserError(
                f"{flag(own.model)} needs {flag(name)}",
                remedy=f"Add {flag(name)}; retort tune finds a good value",
            )
    values: dict[str, Any] = {name: os.fspath(value) if isinstance(value, Path) else value for name, value in given.items()}
    return replace(base, **values)


def read_options(path: str | Path) -> DecodingOptions:
    """Read options from a JSON file, such as `retort tune` writes; other keys are ignored.

    Raises:
        UserError: the file does not exist, has no options, or has invalid values.
    """
    remedy = "Give the tuned.json that `retort tune` wrote"
    try:
        content = read_json(path)
        known = {each.name: each for each in fields(GREEDY)}
        values: dict[str, Any] = {key: _read(known[key], content[key]) for key in content if key in known}
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
    """Content for :func:`read_options`: the beam, the n-best list, what belongs to models that are given, and what
    differs from its default."""
    content = asdict(options)
    for each in fields(options):
        model = option_of(each).model
        used = each.name in ("beam", "nbest") or bool(model and getattr(options, model))
        if not used and content[each.name] == each.default:
            del content[each.name]
    return content


def values_text(each: Field[Any]) -> str:
    """Permitted values, default and kinds of students of an option, for its documentation."""
    own, limits = option_of(each), each.metadata.get("range")
    parts = []
    if own.choices:
        parts.append(f"one of {', '.join(own.choices)}")
    elif limits is not None:
        parts.append(str(limits))
    if each.default != "":
        parts.append(f"default {_shown(each.default)}")
    if own.students:
        others = [kind for kind in STUDENTS if kind not in own.students]
        few, word = (others, "not for") if len(others) < len(own.students) else (own.students, "for")
        parts.append(f"{word} {', '.join(few)} students")
    return "; ".join(parts)


def options_page(of: type[DecodingOptions] = DecodingOptions) -> str:
    """The documentation of all decoding options as Markdown (`retort config --decoding-options`)."""
    lines = [
        "# Decoding options",
        "",
        "Written by `retort config --decoding-options`. Each is an option of `retort evaluate`, `retort transcribe` and",
        "`retort serve`, a keyword argument of `retort.load` and of `asr.transcribe`, and a key of `decode` in a sweep.",
        "`retort tune` takes all except those marked with *, most of which it chooses.",
        "",
    ]
    return "\n".join([*lines, *_entries(of)]) + "\n"


def _entries(of: type[DecodingOptions]) -> Iterator[str]:
    for each in fields(of):
        own = option_of(each)
        mark = "*" if own.tuned or each.name == "nbest" else ""
        values = values_text(each)
        text = f"{own.text} ({values[0].upper()}{values[1:]}.)" if values else own.text
        kind = f"{flag(each.name)}{f' {own.metavar}' if own.metavar else ''}"
        yield f"- `{each.name}`{mark} (`{kind}`): {text}"


def _read(each: Field[Any], value: Any) -> Any:
    """The value of a field in a JSON file."""
    kind: Any = type(each.default)
    return value if option_of(each).listed else kind(value)


def _lines(name: str, value: Any) -> tuple[str, ...]:
    """A sequence of lines, or of pairs of a text and a weight."""
    try:
        lines = tuple(each if isinstance(each, str) else "{}\t{:g}".format(*each) for each in value)
    except (TypeError, ValueError, IndexError):
        raise UserError(f"{name} is {value!r:.60}", remedy="Give a list of strings, or the path of a file") from None
    return lines


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _short(model: str) -> str:
    """The last part of a path or name that distinguishes one model from another."""
    parts = [part for part in Path(model).parts if part not in ("/", ".", "..", "model")]
    return parts[-1] if parts else "model"
