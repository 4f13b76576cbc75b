"""The Whisper student: Whisper's encoder and decoder, and an optional CTC head over the bytes of the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retort.config.kinds import of_kind
from retort.config.ranges import MILLION, number
from retort.config.student import EncoderConfig, StudentConfig, check_whisper_decoder
from retort.nn.encoder import make_encoder
from retort.nn.masks import valid_mask
from retort.nn.whisper import WhisperFrontend, WhisperLayer, copy_whisper_weights
from retort.nn.whisper_decoder import WhisperDecoder, WhisperDecoderSizes, copy_whisper_decoder
from retort.nn.whisper_fired import FiredWhisperDecoder
from retort.students.cross_entropy import hard_loss
from retort.students.ctc import ctc_loss
from retort.students.glancing import drop_tokens
from retort.students.student import Encoded, Student, StudentOutput, Tap
from retort.students.tokens import TokenStudent, layer_dims, utterance_tap
from retort.text.tokenizers import EOS, Tokenizer
from retort.text.whisper_pieces import WhisperTokenizer

if TYPE_CHECKING:
    from retort.config.schema import Recipe

BYTES = 257
"""Number of outputs of the CTC head: the blank and one for every byte value."""


@dataclass
class WhisperStudentConfig(StudentConfig):
    """Configuration of :class:`WhisperStudent`. The decoder has the sizes of the Whisper model and no dropout."""

    kind: str = "whisper"
    encoder: EncoderConfig = of_kind("encoder", "pretrained")
    """Encoder of a Whisper model (`kind: pretrained`), whose decoder is used as well."""
    history_dropout: float = number(0.0, 0, 1, below=True)
    """Share of the previous tokens that are replaced by the unknown token in training, so that the decoder relies on
    the acoustics rather than on a history that has errors in decoding."""
    label_smoothing: float = number(0.1, 0, 1, below=True)
    """Label smoothing of the cross-entropy loss."""
    ce_weight: float = number(1.0, 0, MILLION)
    """Weight of the cross-entropy loss of the decoder."""
    ctc_weight: float = number(0.5, 0, MILLION)
    """Weight of the loss of a CTC head over the bytes of the text; 0 for no such head."""

    @property
    def has_whisper_decoder(self) -> bool:
        return True

    def check(self, recipe: Recipe, where: str) -> None:
        check_whisper_decoder(recipe, "student.kind", where)


class WhisperStudent(TokenStudent):
    """Whisper's encoder and decoder with an optional CTC head.

    The tap `acoustic` is the context vector of the decoder's last layer for each token, `linguistic` the decoder's
    last state. Whisper's tokens are sequences of bytes, so the optional CTC head (`ctc_weight` above 0) has 257
    outputs; it is used for times.

    Args:
        config: architecture and weights of the losses; sizes are those of `encoder.architecture`.
        vocabulary: number of ids, including special ones.
        bins: mel bins of a feature frame.

    Attributes:
        spellings: bytes of each id, set by :meth:`read_tokenizer`; targets of the CTC head.
    """

    vocabulary_parts = ("decoder.embedding.",)

    config: WhisperStudentConfig

    def __init__(self, config: WhisperStudentConfig, vocabulary: int, bins: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = make_encoder(config.frontend, config.encoder, bins)
        sizes = WhisperDecoderSizes.read(getattr(config.encoder, "architecture", {}))
        # Whisper was trained without dropout: dropout 0.1 in its decoder raises the loss from 2.4 to 10 nats per
        # token.
        self.decoder = WhisperDecoder(sizes, vocabulary, 0.0)
        self.byte_ctc = nn.Linear(config.encoder.dim, BYTES) if config.ctc_weight > 0.0 else None
        self.spellings: Sequence[bytes] = ()

    def read_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Store the bytes of the tokens."""
        if isinstance(tokenizer, WhisperTokenizer):
            self.spellings = tokenizer.spellings

    @property
    def loss_weights(self) -> dict[str, float]:
        weights = {"ce": self.config.ce_weight}
        return weights if self.byte_ctc is None else weights | {"ctc": self.config.ctc_weight}

    @property
    def tap_dims(self) -> dict[str, int]:
        dim = self.decoder.sizes.dim
        return {
            "acoustic": dim,
            "linguistic": dim,
            "utterance": dim,
            "tokens": self.decoder.embedding.num_embeddings,
        } | layer_dims(self.config.encoder)

    @property
    def most_tokens(self) -> int:
        return self.decoder.most_tokens

    @property
    def prose(self) -> str:
        ctc = "" if self.byte_ctc is None else ", CTC head over bytes"
        return f"decoder    {self.decoder.sizes.prose}{ctc}"

    def forward(
        self, features: Tensor, feature_lengths: Tensor, tokens: Tensor, token_lengths: Tensor
    ) -> StudentOutput:
        """Losses and taps of one batch; the arguments are those of :class:`TokenStudent`."""
        encoded, layers = self.encode_in_layers(features, feature_lengths)
        tokens = tokens[:, : int(token_lengths.max())]
        share = self.config.history_dropout if self.training else 0.0
        previous = F.pad(drop_tokens(tokens, share), (1, 0), value=EOS)[:, :-1]
        decoded = self.decoder(previous, encoded.hidden, encoded.lengths)
        mask = valid_mask(token_lengths, tokens.shape[1])
        # The output layer is wide, so it is computed only for positions that are not padding.
        found = self.decoder.logits(decoded.states[mask])
        ce = hard_loss(
            found[None], tokens[mask][None], mask[mask][None], self.config.label_smoothing, self.config.ce_weight
        )
        losses = {"ce": ce.total}
        if self.byte_ctc is not None:
            losses["ctc"] = self._ctc_loss(encoded, tokens, token_lengths)
        logits = found.new_zeros(*mask.shape, found.shape[-1]).masked_scatter(mask[..., None], found)
        hard = ce.hard.new_zeros(mask.shape).masked_scatter(mask, ce.hard)
        taps = {
            "acoustic": Tap(decoded.contexts, token_lengths, "token"),
            "linguistic": Tap(decoded.states, token_lengths, "token"),
            "tokens": Tap(logits, token_lengths, "token", hard),
            "utterance": utterance_tap(encoded.hidden, encoded.lengths),
        }
        return StudentOutput(losses, taps | layers, {"correct": ce.correct})

    def byte_log_probs(self, encoded: Encoded) -> Tensor:
        """Log-probabilities `(B, T, 257)` of the CTC head, float32 regardless of autocast.

        Raises:
            ValueError: there is no CTC head.
        """
        if self.byte_ctc is None:
            raise ValueError("this student has no CTC head")
        with torch.autocast(encoded.hidden.device.type, enabled=False):
            result: Tensor = self.byte_ctc(encoded.hidden).log_softmax(-1)
        return result

    def byte_labels(self, texts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
        """CTC labels `(B, N)` int64 and lengths `(B,)` of B sequences of ids."""
        spelled = [b"".join(self.spellings[each] for each in ids) for ids in texts]
        lengths = torch.tensor([len(each) for each in spelled])
        labels = torch.zeros(len(spelled), int(lengths.max()), dtype=torch.int64)
        for row, each in enumerate(spelled):
            labels[row, : len(each)] = torch.tensor(list(each), dtype=torch.int64) + 1
        return labels.to(device), lengths.to(device)

    def _ctc_loss(self, encoded: Encoded, tokens: Tensor, token_lengths: Tensor) -> Tensor:
        texts = [ids[: max(count - 1, 0)] for ids, count in zip(tokens.tolist(), token_lengths.tolist())]
        labels, lengths = self.byte_labels(texts, tokens.device)
        return ctc_loss(self.byte_log_probs(encoded), encoded.lengths, labels, lengths)


def whisper_decoder(student: Student) -> WhisperDecoder | None:
    """The decoder of a Whisper student."""
    decoder = getattr(student, "decoder", None)
    decoder = decoder.whisper if isinstance(decoder, FiredWhisperDecoder) else decoder
    return decoder if isinstance(decoder, WhisperDecoder) else None


def copy_whisper(
    student: Student, decoder: WhisperDecoder, weights: Mapping[str, Tensor], tokenizer: WhisperTokenizer
) -> int:
    """Copy the weights of `transformers`' WhisperModel into a student; returns the number of tensors.

    Args:
        decoder: the student's (:func:`whisper_decoder`).
        weights: the state dictionary of the WhisperModel.
        tokenizer: the student's.
    """
    parts = {
        part: {name.removeprefix(f"{part}."): each for name, each in weights.items() if name.startswith(f"{part}.")}
        for part in ("encoder", "decoder")
    }
    frontend, norm = student.encoder.frontend, student.encoder.norm
    assert isinstance(frontend, WhisperFrontend)
    assert isinstance(norm, nn.LayerNorm)
    layers = [layer for layer in student.encoder.layers if isinstance(layer, WhisperLayer)]
    taken = copy_whisper_weights(parts["encoder"], frontend, layers, norm)
    rows, prompt = tokenizer.pieces_of_whisper, tokenizer.prompt
    return taken + copy_whisper_decoder(parts["decoder"], decoder, rows, prompt)
