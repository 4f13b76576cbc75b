"""The CIF student: encoder, integrate-and-fire, autoregressive or parallel decoder, CTC head.

Source: Dong and Xu 2020 (CIF); Han et al. 2023 for the sizes of the recipe `aishell1/cif`; Gao et al. 2022 (Paraformer)
for the parallel decoder.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from retort.common.errors import UserError
from retort.config.kinds import builder_of, of_kind
from retort.config.ranges import MILLION, choice, number
from retort.config.student import DecoderConfig, DecoderSizes, StudentConfig, check_odd, require
from retort.nn.cif import FiredTokens, WeightEstimator, integrate_and_fire
from retort.nn.ctc import greedy_peaks, label_frames
from retort.nn.decoder import CifDecoder
from retort.nn.encoder import make_encoder
from retort.nn.factored import FactoredDecoder
from retort.nn.masks import padded, valid_mask
from retort.nn.parallel_decoder import ParallelConfig, ParallelDecoder
from retort.nn.whisper_alignment import middle_frames, token_runs
from retort.nn.whisper_fired import FiredWhisperDecoder
from retort.nn.window import fire_frames
from retort.students.cross_entropy import HardLoss, hard_loss
from retort.students.ctc import HasCtc, ctc_log_probs, ctc_loss
from retort.students.fired import FiredUtterances, SegmentedUtterances
from retort.students.glancing import drop_tokens, glance
from retort.students.student import Encoded, StudentOutput, Tap
from retort.students.tokens import TokenStudent, at_frames, layer_dims, utterance_tap
from retort.text.tokenizers import BLANK, EOS, PAD

if TYPE_CHECKING:
    from retort.config.schema import Recipe


@dataclass
class CifConfig:
    """Continuous integrate-and-fire (CIF)."""

    kernel: int = number(3, 1, 1001)
    """Kernel size of the convolution that predicts the weights, in frames; odd."""
    activation: str = choice("none", "relu")
    """Activation after that convolution: `none` (as in the reference) or `relu`."""
    dropout: float = number(0.2, 0, 1, below=True)
    """Dropout probability after that convolution."""
    context_layers: int = number(0, 0, 1000)
    """Number of layers, of the same kind as the encoder's, over the fired embeddings, which let each token use the
    acoustics of its neighbours. The tap `acoustic` is their output."""
    fires: str = choice("accumulate", "ctc")
    """`accumulate` integrates predicted weights (the published method). `ctc` takes the encoder frame at each peak of
    the CTC head, and the last frame for EOS: in training at the frames of the best path of the reference, in decoding
    at those of the best path (ours; no weights are predicted)."""
    tail: float = number(0.5, 0, 1)
    """In evaluation: the weight left after the last full token becomes a token if it is larger than this."""
    spare: int = number(0, 0, 1000)
    """In decoding, for a `whisper` decoder: number of additional fires, of the last frame, after the last one. That
    decoder ends a sentence by itself, so no words are lost if CIF fires too few tokens. With it, EOS is scored only
    once per hypothesis."""

    def validate(self, key: str) -> None:
        """Check the kernel, as :func:`check_odd`."""
        check_odd(f"{key}.kernel", self.kernel)


@dataclass
class CifStudentConfig(StudentConfig):
    """Configuration of :class:`CifStudent`."""

    kind: str = "cif"
    faithful: bool = False
    """Reproduce the published CIF-HKD code: input projection, relative positions, and EOS as a label of CTC (with
    `zero_infinity` off)."""
    cif: CifConfig = field(default_factory=CifConfig)
    """Continuous integrate-and-fire."""
    decoder: DecoderConfig = of_kind("decoder", "autoregressive")
    """Decoder."""
    label_smoothing: float = number(0.1, 0, 1, below=True)
    """Label smoothing of the cross-entropy loss."""
    ce_weight: float = number(1.0, 0, MILLION)
    """Weight of the cross-entropy loss of the decoder."""
    ctc_weight: float = number(0.5, 0, MILLION)
    """Weight of the CTC loss."""
    quantity_weight: float = number(1.0, 0, MILLION)
    """Weight of the CIF quantity loss, the difference between the sum of the weights and the number of tokens."""
    alignment_weight: float = number(0.0, 0, MILLION)
    """Weight of a loss that moves the CIF weights of each token to the frames where the CTC head, or with a `whisper`
    decoder its cross-attention, aligns the token (ours)."""

    chunked: ClassVar[bool] = True

    @property
    def has_whisper_decoder(self) -> bool:
        return self.decoder.kind == "whisper"

    @property
    def without_initial_model(self) -> Self:
        return replace(super().without_initial_model, decoder=self.decoder.without_initial_model)

    def validate(self, key: str) -> None:
        context = f"{key}.cif.context_layers", self.cif.context_layers, (0,)
        if self.faithful:
            positions = getattr(self.encoder, "positions", "relative")
            require(f"{key}.faithful is true", "", (f"{key}.encoder.positions", positions, ("relative",)))
        if self.encoder.kind == "pretrained":
            require(f"{key}.encoder.kind is pretrained", "", context, (f"{key}.faithful", self.faithful, (False,)))
        if self.cif.fires == "ctc":
            self._validate_peaks(key)
        if self.cif.spare:
            require(f"{key}.cif.spare is {self.cif.spare}", "", (f"{key}.decoder.kind", self.decoder.kind, ("whisper",)))
        if any(self.encoder.chunk):
            require(
                f"{key}.encoder.chunk is {list(self.encoder.chunk)}",
                "",
                context,
                (f"{key}.cif.fires", self.cif.fires, ("accumulate",)),
                (f"{key}.decoder.kind", self.decoder.kind, ("autoregressive", "whisper")),
            )

    def _validate_peaks(self, key: str) -> None:
        """Check a student that fires at the peaks of the CTC head."""
        reason = f"{key}.cif.fires is ctc"
        require(reason, "", (f"{key}.faithful", self.faithful, (False,)))
        if not self.ctc_weight > 0.0:
            raise UserError(
                f"{key}.ctc_weight is 0, but {reason}: the CTC head would not be trained", remedy="Set ctc_weight: 0.5"
            )
        for name in ("quantity_weight", "alignment_weight"):
            if (weight := getattr(self, name)) not in (0.0, getattr(CifStudentConfig, name)):
                raise UserError(
                    f"{key}.{name} is {weight:g}, but {reason}: no CIF weights are predicted",
                    remedy="Remove it, or set fires: accumulate",
                )

    def check(self, recipe: Recipe, where: str) -> None:
        self.decoder.check(recipe, where)


def make_decoder(
    config: CifStudentConfig, vocabulary: int
) -> CifDecoder | ParallelDecoder | FiredWhisperDecoder:
    """Create the decoder `decoder.kind` over fired embeddings of the encoder's width.

    Raises:
        UserError: the encoder's architecture has no Whisper decoder.
    """
    made = builder_of("decoder", config.decoder.kind)(config.decoder, vocabulary, config.encoder)
    assert isinstance(made, CifDecoder | ParallelDecoder | FiredWhisperDecoder)
    return made


class CifStudent(TokenStudent):
    """CIF model with one token per fire.

    Args:
        config: architecture and weights of the losses.
        vocabulary: number of ids, including special ones.
        bins: number of filter banks per frame.
    """

    vocabulary_parts = ("ctc.", "decoder.embedding.", "decoder.vocabulary.", "decoder.whisper.embedding.")

    config: CifStudentConfig

    def __init__(self, config: CifStudentConfig, vocabulary: int, bins: int) -> None:
        super().__init__()
        self.config = config
        dim = config.encoder.dim
        self.encoder = make_encoder(config.frontend, config.encoder, bins, config.faithful)
        if config.ctc_weight > 0.0 or config.decoder.kind != "whisper":
            self.ctc = nn.Linear(dim, vocabulary)
        self.weights = (
            WeightEstimator(dim, config.cif.kernel, config.cif.dropout, config.cif.activation)
            if config.cif.fires == "accumulate"
            else None
        )
        self.context = nn.ModuleList(
            self.encoder.context_layer(number + 1) for number in range(config.cif.context_layers)
        )
        self.decoder = make_decoder(config, vocabulary)
        self.vocabulary = vocabulary

    @property
    def loss_weights(self) -> dict[str, float]:
        config = self.config
        weights = {"ce": config.ce_weight}
        if isinstance(self, HasCtc):
            weights["ctc"] = config.ctc_weight
        if self.weights is None:
            return weights
        return {**weights, "quantity": config.quantity_weight, "alignment": config.alignment_weight}

    @property
    def tap_dims(self) -> dict[str, int]:
        dim, decoder = self.config.encoder.dim, self.config.decoder
        states = decoder.dim if isinstance(decoder, DecoderSizes) else dim
        more = {"history": states} if isinstance(self.decoder, CifDecoder) else {}
        more |= {"ctc": self.vocabulary} if isinstance(self, HasCtc) else {}
        return {
            "acoustic": dim,
            "fired": dim,
            **more,
            "linguistic": states,
            "utterance": dim,
            "tokens": self.vocabulary,
        } | layer_dims(self.config.encoder)

    @property
    def most_tokens(self) -> int | None:
        return self.decoder.whisper.most_tokens if isinstance(self.decoder, FiredWhisperDecoder) else None

    @property
    def prose(self) -> str:
        config = self.config.decoder
        sizes = self.decoder.whisper.sizes if isinstance(self.decoder, FiredWhisperDecoder) else config
        fires = "" if self.weights is not None else ", fires at the peaks of the CTC head"
        return f"decoder    {getattr(sizes, 'prose', '')}{config.more_prose}{fires}"

    def fire(self, encoded: Encoded, target_lengths: Tensor | None = None) -> FiredTokens:
        """Fire according to the weights, or exactly `target_lengths (B,)` tokens; in float32 regardless of autocast."""
        if self.weights is None:
            if target_lengths is not None:
                raise ValueError("fires at the peaks of the CTC head cannot be scaled to a number of tokens")
            raw = self._fire_at_peaks(encoded)
        else:
            alphas = self.weights(encoded.hidden, encoded.lengths, self.encoder.chunks)
            raw = self._integrate(encoded, alphas, target_lengths)
        fired = self._in_context(raw)
        spare = self.config.cif.spare if target_lengths is None else 0
        return with_spare(fired, encoded, spare) if spare else fired

    def _integrate(self, encoded: Encoded, alphas: Tensor, target_lengths: Tensor | None) -> FiredTokens:
        with torch.autocast(encoded.hidden.device.type, enabled=False):
            return integrate_and_fire(
                encoded.hidden, alphas, encoded.lengths, target_lengths, tail=self.config.cif.tail
            )

    def _fire_at_peaks(self, encoded: Encoded) -> FiredTokens:
        """Fire at the peaks of the CTC head's best path, and at the last frame for EOS."""
        assert isinstance(self, HasCtc)
        peaks = greedy_peaks(ctc_log_probs(self, encoded), encoded.lengths, (BLANK, PAD, EOS))
        counts = torch.tensor([len(each) for each in peaks], device=encoded.lengths.device)
        places = [torch.tensor([peak.frame for peak in each], dtype=torch.int64) for each in peaks]
        frames = pad_sequence(places, batch_first=True).to(counts.device)
        return fire_at(encoded, frames, counts)

    def _in_context(self, fired: FiredTokens) -> FiredTokens:
        embeddings = fired.embeddings
        if not self.context or embeddings.shape[1] == 0:
            return fired
        for layer in self.context:
            embeddings = layer(embeddings, fired.lengths)
        mask = valid_mask(fired.lengths, embeddings.shape[1])
        return fired._replace(embeddings=embeddings.float().masked_fill(~mask[..., None], 0.0))

    def forward(
        self, features: Tensor, feature_lengths: Tensor, tokens: Tensor, token_lengths: Tensor
    ) -> StudentOutput:
        """Losses and taps of one batch; the arguments are those of :class:`TokenStudent`."""
        encoded, layers = self.encode_in_layers(features, feature_lengths)
        label_lengths = token_lengths if self.config.faithful else (token_lengths - 1).clamp(min=0)
        losses: dict[str, Tensor] = {}
        located, runs, ctc = None, None, {}
        if isinstance(self, HasCtc):
            log_probs, infinite = ctc_log_probs(self, encoded), self.config.faithful
            losses["ctc"] = ctc_loss(log_probs, encoded.lengths, tokens, label_lengths, infinite=infinite)
            ctc["ctc"] = Tap(log_probs, encoded.lengths, "frame")
            aligned = self.config.alignment_weight != 0.0 and not isinstance(
                self.decoder, FiredWhisperDecoder
            )
            if self.weights is None or aligned:
                located = label_frames(log_probs, encoded.lengths, tokens, label_lengths, blank=BLANK)
        if self.weights is None:
            assert located is not None
            raw = fire_at(encoded, located[0], label_lengths)
        else:
            # The gradient of the quantity loss does not go to Whisper's encoder.
            whisper = isinstance(self.decoder, FiredWhisperDecoder)
            hidden = encoded.hidden.detach() if whisper else encoded.hidden
            alphas = self.weights(hidden, encoded.lengths, self.encoder.chunks)
            raw = self._integrate(encoded, alphas, token_lengths)
            losses["quantity"] = (raw.quantity - token_lengths).abs().sum()
            if located is not None:
                losses["alignment"] = alignment_loss(alphas, token_lengths, *located)
            elif self.config.alignment_weight != 0.0:
                runs = self._attended_runs(encoded, tokens[:, : raw.embeddings.shape[1]], token_lengths)
                losses["alignment"] = spacing_loss(alphas, middle_frames(runs, encoded.lengths), token_lengths)
        fired = self._in_context(raw)
        tokens = tokens[:, : fired.embeddings.shape[1]]
        states, logits, counts, history = self._decode(encoded, fired, tokens)
        mask = valid_mask(token_lengths, tokens.shape[1])
        ce = hard_loss(logits, tokens, mask, self.config.label_smoothing, self.config.ce_weight)
        losses["ce"] = ce.total
        taps = {
            "acoustic": Tap(fired.embeddings, token_lengths, "token"),
            "fired": Tap(raw.embeddings, token_lengths, "token"),
            "linguistic": Tap(states, token_lengths, "token"),
            "tokens": Tap(logits, token_lengths, "token", ce.hard),
            "utterance": utterance_tap(fired.embeddings, token_lengths),
        }
        if history is not None:
            taps["history"] = Tap(history, token_lengths, "token")
        metrics = {"correct": ce.correct}
        if self.weights is not None:
            metrics["quantity_total"] = fired.quantity.detach().sum()
        segmented = None if self._parallel else self._segmented(encoded, raw, tokens, runs)
        return StudentOutput(losses, taps | layers | ctc, metrics | counts, segmented)

    def read_fired(self, utterances: FiredUtterances) -> HardLoss:
        """The loss of an autoregressive decoder on frames and fired embeddings that are given; only the decoder gets
        gradients.

        With :attr:`StudentOutput.fired` of a batch, it is the decoder's loss on this batch.
        """
        tokens, mask = utterances.tokens, valid_mask(utterances.lengths, utterances.tokens.shape[1])
        encoded = Encoded(utterances.frames, utterances.frame_lengths)
        times = (utterances.places + 1).to(encoded.hidden.dtype).masked_fill(~mask, 0.0)
        raw = FiredTokens(utterances.fired, utterances.lengths, times, utterances.lengths.to(times.dtype))
        with torch.no_grad():
            fired = self._in_context(raw)
        torch.clear_autocast_cache()  # for the reason given in `_decode`
        _, logits, _, _ = self._decode(encoded, fired, tokens)
        return hard_loss(logits, tokens, mask, self.config.label_smoothing, self.config.ce_weight)

    @property
    def _parallel(self) -> bool:
        return isinstance(self.decoder, ParallelDecoder)

    def _segmented(
        self, encoded: Encoded, raw: FiredTokens, tokens: Tensor, runs: list[list[int]] | None
    ) -> SegmentedUtterances:
        """The frames of each of `tokens (B, U)`: those of `runs`; otherwise up to its fire, or, for fires at the peaks of
        the CTC head, up to the middle between this and the next peak."""
        places = fire_frames(raw.fire_times, encoded.lengths)
        if runs is not None:
            ends = padded([torch.tensor(each, dtype=torch.int64) for each in runs]).to(places.device)
        elif self.weights is None:
            ends = F.pad((places[:, :-1] + places[:, 1:] + 1) // 2, (0, min(places.shape[1], 1)))
        else:
            ends = places + 1
        last = torch.arange(ends.shape[1], device=ends.device) == (raw.lengths - 1)[:, None]
        ends = torch.where(last, encoded.lengths[:, None], ends)
        frames, fired = encoded.hidden.detach(), raw.embeddings.detach()
        return SegmentedUtterances(frames, encoded.lengths, fired, places, tokens, raw.lengths, ends)

    @torch.no_grad()
    def _attended_runs(self, encoded: Encoded, tokens: Tensor, token_lengths: Tensor) -> list[list[int]]:
        """The frame after the last one of each of `tokens (B, U)`, from the attention of Whisper's decoder."""
        assert isinstance(self.decoder, FiredWhisperDecoder)
        previous = F.pad(tokens, (1, 0), value=EOS)[:, :-1]
        weights = self.decoder.whisper.alignment(previous, encoded.hidden, encoded.lengths)
        torch.clear_autocast_cache()  # for the reason given in `_decode`
        return token_runs(weights, token_lengths, encoded.lengths)

    def _decode(
        self, encoded: Encoded, fired: FiredTokens, tokens: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor], Tensor | None]:
        """States and logits of all positions of `tokens (B, U)`, metrics of a parallel decoder, and the states before the
        fired embeddings enter, of a decoder that has them.

        A parallel decoder is run twice in training: the errors of the first pass determine how many target tokens
        are shown in the second. The losses are those of the second pass over all positions, including shown ones
        (as in the authors' code, FunASR; Qian et al. exclude them).
        """
        if not isinstance(self.decoder, ParallelDecoder):
            previous = F.pad(self._drop_history(tokens), (1, 0), value=EOS)[:, :-1]
            memory = self._memory(fired, encoded)
            if isinstance(self.decoder, CifDecoder):
                history = self.decoder.history(previous, fired.embeddings)
                return *self.decoder.finish(history, fired.embeddings, memory), {}, history
            return *self.decoder(previous, fired.embeddings, memory), {}, None
        given = (fired.embeddings, fired.lengths, encoded.hidden, encoded.lengths)
        assert isinstance(self.config.decoder, ParallelConfig)
        ratio = self.config.decoder.glancing
        if not self.training or ratio == 0.0:
            return *self.decoder(*given), {}, None
        with torch.no_grad():
            predicted = self.decoder(*given)[1].argmax(-1)
        # Otherwise some versions of torch reuse weights in the second pass that autocast has cast without
        # gradients.
        torch.clear_autocast_cache()
        shown = glance(predicted, tokens, fired.lengths, ratio)
        right = (predicted == tokens) & valid_mask(fired.lengths, tokens.shape[1])
        counts = {"correct": right.sum(), "shown": shown.sum()}
        return *self.decoder(*given, (tokens, shown)), counts, None

    def decode(self, encoded: Encoded, fired: FiredTokens, previous: Tensor) -> Tensor:
        """Logits `(B, U, V)` of an autoregressive decoder with teacher forcing, given the previous tokens `(B, U)`."""
        if isinstance(self.decoder, ParallelDecoder):
            raise ValueError("a parallel decoder has no history of tokens")
        return self.decoder(previous, fired.embeddings, self._memory(fired, encoded))[1]

    def with_language_scale(self, scale: float) -> CifStudent:
        """A student with the same parameters and another scale of the language part of its `factored` decoder."""
        decoder, result = copy.copy(self.decoder), copy.copy(self)
        if not isinstance(decoder, FactoredDecoder):
            raise ValueError("this decoder has no language part")
        decoder.language_scale = scale
        result._modules = {**self._modules, "decoder": decoder}
        return result

    def start(self, fired: FiredTokens, encoded: Encoded | None = None) -> Any:
        """Initial state of the decoder for a search over fires.

        Args:
            encoded: encoder output, for a decoder that attends to it.

        Raises:
            ValueError: the decoder requires `encoded`.
        """
        if isinstance(self.decoder, FiredWhisperDecoder):
            return self.decoder.start(self._memory(fired, encoded))
        if isinstance(self.decoder, CifDecoder):
            return self.decoder.start(len(fired.embeddings), fired.embeddings, self._memory(fired, encoded))
        memory = (None, None) if encoded is None else (encoded.hidden, encoded.lengths)
        return self.decoder.start(fired.embeddings, fired.lengths, *memory)

    def _memory(self, fired: FiredTokens, encoded: Encoded | None) -> Any:
        """The frames for a decoder with attention around each fire; None for other decoders."""
        reader = self.decoder.window if isinstance(self.decoder, CifDecoder) else self.decoder
        if reader is None or isinstance(reader, ParallelDecoder):
            return None
        if encoded is None:
            raise ValueError("a decoder with a window requires the encoder's frames")
        places = fire_frames(fired.fire_times, encoded.lengths)
        chunks = self.encoder.chunks
        ends = None if chunks is None else chunks.ends(places, encoded.lengths)
        return reader.remember(encoded.hidden, encoded.lengths, places, ends)

    def _drop_history(self, tokens: Tensor) -> Tensor:
        """In training, replace some of `tokens (B, U)` by the unknown token."""
        share = getattr(self.config.decoder, "history_dropout", 0.0)
        return drop_tokens(tokens, share) if self.training else tokens


def fire_at(encoded: Encoded, frames: Tensor, counts: Tensor) -> FiredTokens:
    """Fire at given frames, and at the last frame of the utterance for EOS.

    Args:
        encoded: encoder output of B utterances.
        frames: `(B, N)` int64, frame of each token.
        counts: `(B,)` int64, number of tokens, at most N.

    Returns:
        `counts + 1` tokens per utterance, none for one without frames. A token is complete at the end of its frame;
        `quantity` is the number of tokens.
    """
    lengths = (counts + 1).masked_fill(encoded.lengths == 0, 0)
    size = int(lengths.max()) if len(lengths) else 0
    places = F.pad(frames[:, :size], (0, size - min(size, frames.shape[1])))
    last = (encoded.lengths - 1).clamp(min=0)[:, None]
    at_end = torch.arange(size, device=frames.device) >= counts[:, None]
    places = torch.where(at_end, last, places)
    mask = valid_mask(lengths, size)
    embeddings = at_frames(encoded.hidden, places) if size else encoded.hidden[:, :0]
    times = (places + 1).to(encoded.hidden.dtype).masked_fill(~mask, 0.0)
    return FiredTokens(embeddings.masked_fill(~mask[..., None], 0.0), lengths, times, lengths.to(times.dtype))


def with_spare(fired: FiredTokens, encoded: Encoded, spare: int) -> FiredTokens:
    """Append `spare` copies of the last frame after the last fire of each utterance; none for one without frames."""
    lengths = torch.where(encoded.lengths > 0, fired.lengths + spare, 0)
    size = int(lengths.max()) if len(lengths) else 0
    grown = size - fired.embeddings.shape[1]
    own = torch.arange(size, device=lengths.device) < fired.lengths[:, None]
    inside = valid_mask(lengths, size)
    ends = encoded.lengths.to(fired.fire_times.dtype)[:, None]
    times = torch.where(own, F.pad(fired.fire_times, (0, grown)), ends).masked_fill(~inside, 0.0)
    last = at_frames(encoded.hidden, (encoded.lengths - 1).clamp(min=0)[:, None])
    embeddings = torch.where(own[..., None], F.pad(fired.embeddings, (0, 0, 0, grown)), last)
    return FiredTokens(embeddings.masked_fill(~inside[..., None], 0.0), lengths, times, fired.quantity)


def alignment_loss(alphas: Tensor, token_lengths: Tensor, frames: Tensor, valid: Tensor) -> Tensor:
    """Sum of the distances, in tokens, between the middle of each token in CIF and its frame in another alignment.

    Token i takes the weight from i to i + 1. If the other alignment (the CTC head's) has it at frame t, the weight
    before the middle of t should be i + 0.5; the loss is Huber's with threshold 0.5. This loss is ours; the
    reference's code constrains CIF by CTC in another way. Results are in `results/tried.md`.

    Args:
        alphas: `(B, T)` float32, unscaled, zero beyond each utterance.
        token_lengths: `(B,)`, number of tokens that the weights are scaled to.
        frames: `(B, U)` int64, frame of each token.
        valid: `(B, U)` bool, tokens that count.
    """
    dtype, alphas = alphas.dtype, alphas.double()
    scaled = alphas * (token_lengths / alphas.sum(1).clamp(min=1e-8))[:, None]
    before = scaled.cumsum(1) - scaled / 2
    middles = torch.arange(frames.shape[1], device=frames.device) + 0.5
    distance = F.huber_loss(
        before.gather(1, frames), middles.expand_as(frames).double(), reduction="none", delta=0.5
    )
    return distance[valid].sum().to(dtype)


def spacing_loss(alphas: Tensor, middles: Tensor, token_lengths: Tensor) -> Tensor:
    """Sum of the deviations from 1 of the weight between the middles of consecutive tokens.

    The weight before the first and after the last middle should be 0.5. The loss is Huber's with threshold 0.5. In
    contrast to :func:`alignment_loss` the weights are not scaled, so the quantity is trained, too. This loss is
    ours.

    Args:
        alphas: `(B, T)` float32, zero beyond each utterance.
        middles: `(B, U)` int64, middle frame of each token, including EOS.
        token_lengths: `(B,)`, number of tokens that count; utterances with 0 are ignored.
    """
    dtype, alphas = alphas.dtype, alphas.double()
    before = (alphas.cumsum(1) - alphas / 2).gather(1, middles)
    steps = before.diff(dim=1, prepend=before.new_zeros(len(before), 1))
    wanted = torch.ones_like(steps)
    wanted[:, 0] = 0.5
    apart = F.huber_loss(steps, wanted, reduction="none", delta=0.5)
    spoken = token_lengths > 0
    last = before.gather(1, (token_lengths - 1).clamp(min=0)[:, None])[:, 0]
    rest = alphas.sum(1) - last
    ends = F.huber_loss(rest, torch.full_like(rest, 0.5), reduction="none", delta=0.5)
    valid = valid_mask(token_lengths, middles.shape[1])
    return (apart[valid].sum() + ends[spoken].sum()).to(dtype)
