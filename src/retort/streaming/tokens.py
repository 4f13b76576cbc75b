"""Greedy decoding of utterances whose encoder frames arrive in chunks: CIF, CTC and transducer students.

The streams of a batch are decoded together; only Whisper's decoder has one step for each stream.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from retort.common.errors import UserError
from retort.decoding.greedy import NEVER_EMITTED, NOT_FRAME_LABELS
from retort.decoding.hypothesis import Hypothesis
from retort.decoding.transducer import symbol_log_probs
from retort.nn.chunks import Chunks
from retort.nn.decoder import CifDecoder, RowState
from retort.nn.fire_stream import FireStream
from retort.nn.whisper_fired import FiredWhisperDecoder, FiredWhisperState
from retort.streaming.attended import AttendedTokens
from retort.streaming.utterances import Tokens
from retort.students.cif import CifStudent
from retort.students.ctc import CtcStudent, HasCtc, ctc_log_probs
from retort.students.student import Encoded, Student
from retort.students.transducer import TransducerStudent
from retort.text.tokenizers import BLANK, EOS


class NextFrames(NamedTuple):
    """The next encoder frames of B streams.

    Attributes:
        hidden: `(B, T, D)`.
        lengths: B numbers of frames, at least 1.
        alphas: `(B, T)`, weights of a CIF student; None for other students.
        seconds: B durations of the audio so far.
    """

    hidden: Tensor
    lengths: Sequence[int]
    alphas: Tensor | None
    seconds: Sequence[float]


class TokenStream(Tokens):
    """Tokens of one utterance of a model in torch."""

    @classmethod
    @abstractmethod
    def advance(cls, streams: Sequence[Self], new: NextFrames) -> None:
        """Decode the next frames of B streams of one model."""


class CtcStream(TokenStream):
    """The CTC head's best path; a token is complete at the end of its run of frames."""

    def __init__(self, student: HasCtc) -> None:
        super().__init__()
        self.student = student
        self._frames = 0
        self._label, self._score, self._frame = BLANK, 0.0, 0
        self._seconds = 0.0  # at which the run began

    @classmethod
    def advance(cls, streams: Sequence[Self], new: NextFrames) -> None:
        hidden, lengths, _, seconds = new
        encoded = Encoded(hidden, torch.tensor(lengths, device=hidden.device))
        best, labels = ctc_log_probs(streams[0].student, encoded).max(-1)
        for stream, own, scores, count, arrived in zip(
            streams, labels.tolist(), best.tolist(), lengths, seconds
        ):
            stream._read(own[:count], scores[:count], arrived)

    def _read(self, labels: Sequence[int], scores: Sequence[float], seconds: float) -> None:
        """Add the best labels of frames with their log-probabilities."""
        for label, score in zip(labels, scores):
            if label != self._label:
                self._close()
                self._label, self._score, self._frame, self._seconds = label, score, self._frames, seconds
            elif score > self._score:
                self._score, self._frame = score, self._frames
            self._frames += 1

    def finish(self, seconds: float) -> None:
        self._close()

    def current(self) -> Hypothesis:
        found = self.emitted.hypothesis()
        if self._open():
            found = Hypothesis(
                [*found.ids, self._label],
                [*found.log_probs, self._score],
                [*found.ends, self._frame + 1.0],
                [*(found.starts or []), float(self._frame)],
                found.score + self._score,
            )
        return found

    def _open(self) -> bool:
        return self._label not in (BLANK, *NOT_FRAME_LABELS)

    def _close(self) -> None:
        if self._open():
            self.emitted.ids.append(self._label)
            self.emitted.log_probs.append(self._score)
            self.emitted.ends.append(self._frame + 1.0)
            self.emitted.starts.append(float(self._frame))
            self.emitted.seconds.append(self._seconds)
        self._label = BLANK


class TransducerStream(TokenStream):
    """Greedy search of a transducer (:func:`retort.decoding.transducer.transducer_greedy`)."""

    def __init__(self, student: TransducerStudent) -> None:
        super().__init__()
        self.student = student
        self._frames = 0
        predicted, self._state = student.predictor.start(1, EOS)
        self._projected = student.joiner.project_predictor(predicted)

    @classmethod
    def advance(cls, streams: Sequence[Self], new: NextFrames) -> None:
        hidden, lengths, _, seconds = new
        student = streams[0].student
        frames = student.joiner.project_encoder(hidden)
        projected = torch.cat([each._projected for each in streams])
        state = [torch.cat(parts) for parts in zip(*(each._state for each in streams))]
        for place in range(hidden.shape[1]):
            rows = [row for row, count in enumerate(lengths) if place < count]
            for _ in range(student.config.transducer.symbols):
                logits = student.joiner(frames[rows, place], projected[rows])[1]
                best, tokens = symbol_log_probs(logits).max(-1)
                found = [each for each in zip(rows, tokens.tolist(), best.tolist()) if each[1] != BLANK]
                if not found:
                    break
                for row, token, log_prob in found:
                    streams[row]._emit(token, log_prob, place, seconds[row])
                rows = [row for row, _, _ in found]
                chosen = torch.tensor(rows, device=hidden.device)
                predicted, after = student.predictor.step(
                    [each[chosen] for each in state], tokens[tokens != BLANK]
                )
                state = [each.index_copy(0, chosen, own) for each, own in zip(state, after)]
                projected = projected.index_copy(0, chosen, student.joiner.project_predictor(predicted))
        for row, (stream, count) in enumerate(zip(streams, lengths)):
            stream._projected, stream._state = projected[row, None], [each[row, None] for each in state]
            stream._frames += count

    def _emit(self, token: int, log_prob: float, place: int, seconds: float) -> None:
        """Add a token of the frame `place` of the chunk."""
        self.emitted.ids.append(token)
        self.emitted.log_probs.append(log_prob)
        self.emitted.ends.append(self._frames + place + 1.0)
        self.emitted.starts.append(float(self._frames + place))
        self.emitted.seconds.append(seconds)

    def finish(self, seconds: float) -> None:
        return


class _Fire(NamedTuple):
    """A fired token: its vector `(D,)`, its time in frames, and the duration of the audio that it needed."""

    vector: Tensor
    time: float
    seconds: float


class CifStream(TokenStream):
    """One token per fire, with the decoder's cache; the remaining weight fires at the end.

    Args:
        student: CIF student whose weights are predicted.
        decoder: its decoder.
        chunks: limits of context.
    """

    def __init__(self, student: CifStudent, decoder: CifDecoder, chunks: Chunks) -> None:
        super().__init__()
        self.config, self.decoder, self.chunks = student.config.cif, decoder, chunks
        self.fires = FireStream()
        self._waiting: deque[_Fire] = deque()  # fires that are not decoded yet
        self._previous = EOS
        self._hidden: Tensor | None = None  # frames that the decoder attends to
        self._base = 0  # first of these frames
        self._last: Tensor | None = None
        self._state: RowState | None = None

    @classmethod
    def advance(cls, streams: Sequence[Self], new: NextFrames) -> None:
        hidden, lengths, alphas, seconds = new
        if alphas is None:
            raise ValueError("CIF needs the weights of the frames")
        for stream, frames, weights, count, arrived in zip(streams, hidden, alphas, lengths, seconds):
            if not stream.over:
                stream._remember(frames[:count])
                stream._fired(*stream.fires(frames[:count], weights[:count]), arrived)
        _decode_fires(streams)

    def finish(self, seconds: float) -> None:
        self._fired(*self.fires.finish(self.config.tail), seconds)
        if (last := self._last) is not None:
            count = self.config.spare
            self._fired([last] * count, [float(self.fires.frames)] * count, seconds)
        _decode_fires([self])

    def size(self) -> int:
        hidden = 0 if self._hidden is None else self._hidden.numel()
        return super().size() + hidden + (0 if self._state is None else self._state.past.numel())

    def _fired(self, vectors: Sequence[Tensor], times: Sequence[float], seconds: float) -> None:
        self._waiting.extend(_Fire(vector, time, seconds) for vector, time in zip(vectors, times))

    def _remember(self, hidden: Tensor) -> None:
        """Keep the frames that the decoder may attend to."""
        self._last = hidden[-1]
        if self.decoder.window is None:
            return
        whole = hidden if self._hidden is None else torch.cat((self._hidden, hidden))
        # A fire may be assigned to the last frame of the previous chunk.
        surplus = len(whole) - len(hidden) - self.decoder.window.window - 1
        if surplus > 0:
            whole, self._base = whole[surplus:].clone(), self._base + surplus
        self._hidden = whole

    def next(self) -> _Fire | None:
        """The next fire to be decoded."""
        if self.over:
            self._waiting.clear()
        return self._waiting.popleft() if self._waiting else None

    def row(self, fire: _Fire) -> tuple[int, RowState]:
        """The previous token, and the state of the decoder, before a fire."""
        if self._state is None:
            self._state = self.decoder.start_row(fire.vector)
        return self._previous, self._state

    def window(self, fire: _Fire) -> tuple[Tensor, int, int]:
        """The frames `(T, D)` that the decoder may attend to, the fire's frame among them, and the end of its context."""
        assert self._hidden is not None
        # As `retort.nn.window.fire_frames`, which rounds times as the model does.
        wide = fire.vector.dtype == torch.float64
        rounded = math.ceil(fire.time if wide else np.float32(fire.time))
        place = min(max(rounded - 1, 0), self.fires.frames - 1)
        end = min((place // self.chunks.size + 1) * self.chunks.size, self.fires.frames)
        return self._hidden, place - self._base, end - self._base

    def accept(self, fire: _Fire, token: int, log_prob: float, state: RowState) -> None:
        """Add the token of a fire, and the state after it."""
        self._previous, self._state = token, state
        if token == EOS:
            self.over = True
            return
        self.emitted.ids.append(token)
        self.emitted.log_probs.append(log_prob)
        self.emitted.ends.append(fire.time)
        self.emitted.seconds.append(fire.seconds)


def _decode_fires(streams: Sequence[CifStream]) -> None:
    """Decode what has fired: the first fires of all streams together, then the second ones, and so on."""
    while found := [(stream, fire) for stream in streams if (fire := stream.next()) is not None]:
        decoder, device = found[0][0].decoder, found[0][1].vector.device
        rows = [stream.row(fire) for stream, fire in found]
        memory = None
        if decoder.window is not None:
            frames, places, ends = zip(*(stream.window(fire) for stream, fire in found))
            memory = decoder.window.remember(
                pad_sequence(list(frames), batch_first=True),
                torch.tensor([len(each) for each in frames], device=device),
                torch.tensor(places, device=device)[:, None],
                torch.tensor(ends, device=device)[:, None],
            )
        logits, after = decoder.step_rows(
            [state for _, state in rows],
            torch.tensor([previous for previous, _ in rows], device=device),
            torch.stack([fire.vector for _, fire in found]),
            memory,
        )
        log_probs = logits.float().log_softmax(-1)
        log_probs[:, NEVER_EMITTED] = float("-inf")
        scores, tokens = log_probs.max(-1)
        for (stream, fire), token, score, state in zip(found, tokens.tolist(), scores.tolist(), after):
            stream.accept(fire, token, score, state)


class AttendedStream(AttendedTokens, TokenStream):
    """Tokens of Whisper's decoder, with its cache.

    Args:
        decoder: decoder of a CIF student.
        spare: number of tokens after the last fire.
    """

    def __init__(self, decoder: FiredWhisperDecoder, spare: int) -> None:
        super().__init__(spare)
        self.decoder = decoder
        self._previous = EOS
        self._state: FiredWhisperState | None = None
        self._next: FiredWhisperState | None = None

    @classmethod
    def advance(cls, streams: Sequence[Self], new: NextFrames) -> None:
        hidden, lengths, alphas, seconds = new
        if alphas is None:
            raise ValueError("CIF needs the weights of the frames")
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32)).cpu().numpy()
        weights = alphas.cpu().numpy()
        for row, (stream, count, arrived) in enumerate(zip(streams, lengths, seconds)):
            stream._remember(hidden[row, :count])
            stream.add(wide[row, :count], weights[row, :count], arrived)

    def score(
        self, vector: NDArray[np.floating], place: int
    ) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        assert self._state is not None
        weight = self.decoder.fired.weight
        fired = torch.from_numpy(vector)[None].to(weight)
        previous = torch.tensor([self._previous], device=weight.device)
        logits, self._next, attention = self.decoder.attended_step(self._state, previous, fired, place)
        return logits[0].float().log_softmax(-1).cpu().numpy(), attention[0].float().cpu().numpy()

    def accept(self, token: int) -> None:
        self._state, self._previous = self._next, token

    def size(self) -> int:
        pairs = [] if self._state is None else [*self._state.past, *self._state.memory]
        return super().size() + sum(each.numel() for pair in pairs for each in pair)

    def _remember(self, hidden: Tensor) -> None:
        """Keep the keys and values of the frames."""
        new = self.decoder.whisper.memories(hidden[None])
        if self._state is None:
            nothing = torch.zeros(1, 1, 0, 0, dtype=torch.bool, device=hidden.device)
            self._state = FiredWhisperState(new, nothing, [])
            return
        memory = [
            (torch.cat((keys, more), 2), torch.cat((values, others), 2))
            for (keys, values), (more, others) in zip(self._state.memory, new)
        ]
        self._state = replace(self._state, memory=memory)


def open_tokens(student: Student, chunks: Chunks) -> TokenStream:
    """The greedy decoding of an utterance of a stream.

    Raises:
        UserError: the student needs the whole utterance.
    """
    if isinstance(student, CtcStudent):
        return CtcStream(student)
    if isinstance(student, TransducerStudent):
        return TransducerStream(student)
    if isinstance(student, CifStudent):
        decoder, whole = student.decoder, student.weights is None or student.context
        if isinstance(decoder, FiredWhisperDecoder) and not whole:
            return AttendedStream(decoder, student.config.cif.spare)
        if isinstance(decoder, CifDecoder) and not whole:
            return CifStream(student, decoder, chunks)
    raise UserError(
        f"this {student.config.kind} model needs the whole utterance",
        remedy="Use a CIF, CTC or transducer model that was trained with student.encoder.chunk",
    )
