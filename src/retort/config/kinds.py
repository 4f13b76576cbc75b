"""Kinds of the parts of a recipe: one line per kind names its configuration, its module and what it is.

A part such as `student.encoder` has a `kind`, which chooses the dataclass of its other keys. The dataclass is declared
in the file of the module. Both are named by `module:name` and imported when they are needed, so that a list of kinds
does not import torch. See `docs/new_encoder.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from functools import cache
from importlib import import_module
from typing import Any, get_args, get_origin, get_type_hints

from retort.config.ranges import UnknownChoice


@dataclass(frozen=True)
class Kind:
    """A kind of a part.

    Attributes:
        config: its dataclass, as `module:name`.
        build: what creates its module, as `module:name`; empty if another part does.
        text: one sentence for the documentation.
    """

    config: str
    build: str
    text: str


STUDENTS: dict[str, Kind] = {
    "cif": Kind(
        "retort.students.cif:CifStudentConfig",
        "retort.students.cif:CifStudent",
        "Continuous integrate-and-fire (Dong and Xu 2020): one decoder step per fire.",
    ),
    "ctc": Kind(
        "retort.students.ctc:CtcStudentConfig",
        "retort.students.ctc:CtcStudent",
        "An encoder with a CTC head (Graves et al. 2006).",
    ),
    "attention": Kind(
        "retort.students.attention:AttentionStudentConfig",
        "retort.students.attention:AttentionStudent",
        "An encoder with a CTC head, and a decoder that attends to the encoder's output (Watanabe et al. 2017).",
    ),
    "transducer": Kind(
        "retort.students.transducer:TransducerStudentConfig",
        "retort.students.transducer:TransducerStudent",
        "A transducer (Graves 2012).",
    ),
    "whisper": Kind(
        "retort.students.whisper:WhisperStudentConfig",
        "retort.students.whisper:WhisperStudent",
        "Encoder and decoder of a Whisper model (Radford et al. 2022).",
    ),
    "hybrid": Kind(
        "retort.students.hybrid:HybridStudentConfig",
        "retort.students.hybrid:HybridStudent",
        "An encoder that classifies frames into senones; words are found in a decoding graph.",
    ),
}
ENCODERS: dict[str, Kind] = {
    "conformer": Kind(
        "retort.nn.conformer:ConformerConfig",
        "retort.nn.conformer:ConformerEncoder",
        "Self-attention and convolution (Gulati et al. 2020).",
    ),
    "transformer": Kind(
        "retort.nn.conformer:TransformerConfig",
        "retort.nn.conformer:TransformerEncoder",
        "Self-attention (Vaswani et al. 2017).",
    ),
    "tdnnf": Kind(
        "retort.nn.tdnnf:TdnnfConfig",
        "retort.nn.tdnnf:TdnnfEncoder",
        "Factorised time-delay layers (Povey et al. 2018).",
    ),
    "branchformer": Kind(
        "retort.nn.branchformer:BranchformerConfig",
        "retort.nn.branchformer:BranchformerEncoder",
        "Self-attention and cgMLP in parallel (Peng et al. 2022).",
    ),
    "e_branchformer": Kind(
        "retort.nn.branchformer:EBranchformerConfig",
        "retort.nn.branchformer:EBranchformerEncoder",
        "The branches of a Branchformer between two feed-forward modules (Kim et al. 2023).",
    ),
    "zipformer": Kind(
        "retort.nn.zipformer:ZipformerConfig",
        "retort.nn.zipformer:ZipformerEncoder",
        "Stacks of blocks at several frame rates (Yao et al. 2024); its layers are the stacks.",
    ),
    "pretrained": Kind(
        "retort.nn.pretrained:PretrainedEncoderConfig",
        "retort.nn.pretrained:PretrainedEncoder",
        "A pretrained speech encoder with its own front end.",
    ),
}
FRONTENDS: dict[str, Kind] = {
    "conv2d": Kind(
        "retort.nn.frontend:Conv2dConfig",
        "retort.nn.frontend:Conv2dFrontend",
        "Convolutions over time and bins, as in the reference.",
    ),
    "frames": Kind(
        "retort.nn.frontend:FramesConfig",
        "retort.nn.frontend:FramesFrontend",
        "A convolution over time only, for any integer reduction of the frame rate.",
    ),
}
DECODERS: dict[str, Kind] = {
    "autoregressive": Kind(
        "retort.nn.decoder:AutoregressiveConfig",
        "retort.nn.decoder:make_autoregressive",
        "Token by token, as in the reference.",
    ),
    "factored": Kind(
        "retort.nn.factored:FactoredConfig",
        "retort.nn.factored:make_factored",
        "Token by token; the logits are a sound part plus a scaled language part of the previous tokens alone (ours).",
    ),
    "parallel": Kind(
        "retort.nn.parallel_decoder:ParallelConfig",
        "retort.nn.parallel_decoder:make_parallel",
        "All tokens at once (Paraformer, Gao et al. 2022).",
    ),
    "whisper": Kind(
        "retort.nn.whisper_fired:FiredWhisperConfig",
        "retort.nn.whisper_fired:make_fired_whisper",
        "The decoder of the Whisper model whose encoder is used, with its tokenizer, one step per fire (ours).",
    ),
}
FEATURES: dict[str, Kind] = {
    "fbank": Kind(
        "retort.audio.fbank:FbankConfig",
        "retort.audio.fbank:Fbank",
        "Log-mel filter banks as in Kaldi.",
    ),
    "wave": Kind(
        "retort.audio.wave:WaveConfig",
        "retort.audio.wave:WaveFrames",
        "Samples, 10 ms a frame, for pretrained encoders such as wav2vec 2.0.",
    ),
    "whisper": Kind(
        "retort.audio.whisper:WhisperFeatureConfig",
        "retort.audio.online:make_whisper_features",
        "Whisper's log-mel features, for Whisper's encoder.",
    ),
    "w2v_bert": Kind(
        "retort.audio.mel:W2vBertFeatureConfig",
        "retort.audio.mel:W2vBertFeatures",
        "Log-mel features of w2v-BERT 2.0, normalised over the utterance.",
    ),
    "parakeet": Kind(
        "retort.audio.mel:ParakeetFeatureConfig",
        "retort.audio.mel:ParakeetFeatures",
        "Log-mel features of Parakeet, normalised over the utterance.",
    ),
}
TEACHERS: dict[str, Kind] = {
    "masked_lm": Kind(
        "retort.teachers.masked_lm:MaskedLMConfig",
        "",
        "A masked language model such as BERT: hidden states, or with `topk` soft labels.",
    ),
    "causal_lm": Kind(
        "retort.teachers.posteriors:CausalLMConfig",
        "",
        "A causal language model: soft labels.",
    ),
    "whisper": Kind(
        "retort.teachers.whisper:WhisperTeacherConfig",
        "",
        "A Whisper model: soft labels from the audio and the transcript, so that all utterances must have one speed.",
    ),
    "recogniser": Kind(
        "retort.teachers.recogniser:RecogniserTeacherConfig",
        "",
        "A trained CIF model with the student's tokenizer: soft labels from the audio and the transcript.",
    ),
}
PARTS: dict[str, dict[str, Kind]] = {
    "student": STUDENTS,
    "encoder": ENCODERS,
    "frontend": FRONTENDS,
    "decoder": DECODERS,
    "features": FEATURES,
    "teacher": TEACHERS,
}
"""Tables of kinds by the name that :func:`of_kind` is given."""
_PART = "part"


@dataclass(frozen=True)
class Part:
    """What a field with kinds has.

    Attributes:
        name: key of :data:`PARTS`.
        default: the kind of a part that does not name one.
    """

    name: str
    default: str

    @property
    def kinds(self) -> dict[str, Kind]:
        """The table of its kinds."""
        return PARTS[self.name]

    def config(self, values: object, key: str = "") -> type:
        """The dataclass for a part with these values.

        Raises:
            UnknownChoice: the kind is not in the table.
        """
        kind = values.get("kind", self.default) if isinstance(values, Mapping) else self.default
        if not isinstance(kind, str) or kind not in self.kinds:
            raise UnknownChoice(f"{key}.kind is '{kind}'", remedy=f"Choose one of {', '.join(self.kinds)}")
        return config_of(self.name, kind)


def of_kind(part: str, default: str) -> Any:
    """A field for a part with kinds.

    Args:
        part: key of :data:`PARTS`.
        default: the kind of a part that does not name one.
    """
    return field(default_factory=lambda: config_of(part, default)(), metadata={_PART: Part(part, default)})


def named_of_kind(part: str, default: str) -> Any:
    """A field for a mapping from names to parts with kinds."""
    return field(default_factory=dict, metadata={_PART: Part(part, default)})


def part_of(each: Field[Any]) -> Part | None:
    """What a field of a dataclass was given by :func:`of_kind` or :func:`named_of_kind`."""
    found: Part | None = each.metadata.get(_PART)
    return found


def config_of(part: str, kind: str) -> type:
    """The dataclass of a kind."""
    found = imported(PARTS[part][kind].config)
    assert isinstance(found, type)
    return found


def builder_of(part: str, kind: str) -> Any:
    """What creates the module of a kind."""
    return imported(PARTS[part][kind].build)


def imported(name: str) -> Any:
    """What `module:name` names."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


@dataclass(frozen=True)
class Inner:
    """The dataclass below a field.

    Attributes:
        container: None for a field that has it itself, otherwise `list` or `dict`.
        config: the dataclass; for a part with kinds the common base.
        part: None without kinds.
    """

    container: type | None
    config: type
    part: Part | None

    @property
    def below(self) -> str:
        """Text between the field and the keys of the dataclass in names of keys: `[]`, `.NAME`, or nothing."""
        return "[]" if self.container is list else ".NAME" if self.container is dict else ""

    def chosen(self, values: object, key: str = "") -> type:
        """The dataclass for these values.

        Raises:
            UnknownChoice: the kind is not in the table.
        """
        return self.config if self.part is None else self.part.config(values, key)

    def all(self) -> dict[str, type]:
        """The dataclasses by kind; the key is empty without kinds."""
        if self.part is None:
            return {"": self.config}
        return {kind: config_of(self.part.name, kind) for kind in self.part.kinds}


@cache
def inner_parts(config: type) -> dict[str, Inner]:
    """The fields of a dataclass that have a dataclass, or a list or mapping of dataclasses."""
    hints, found = get_type_hints(config), {}
    for each in fields(config):
        hint = hints[each.name]
        container = origin if (origin := get_origin(hint)) in (list, dict) else None
        below = next((part for part in (hint, *get_args(hint)) if isinstance(part, type) and is_dataclass(part)), None)
        if below is not None:
            found[each.name] = Inner(container, below, part_of(each))
    return found
