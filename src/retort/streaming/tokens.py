"""Greedy decoding of one utterance whose encoder frames arrive in chunks: CIF, CTC and transducer students."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retort.common.errors import UserError
from retort.decoding.greedy import NEVER_EMITTED, NOT_FRAME_LABELS
from retort.decoding.hypothesis import Hypothesis
from retort.decoding.transducer import symbol_log_probs
from retort.nn.chunks import Chunks
from retort.nn.decoder import CifDecoder
from retort.nn.fire_stream import FireStream
from retort.nn.whisper_fired import FiredWhisperDecoder, FiredWhisperState
from retort.nn.window import FrameMemory
from retort.streaming.attended import AttendedTokens
from retort.streaming.utterances import Tokens
from retort.students.cif import CifStudent
from retort.students.ctc import CtcStudent, HasCtc, ctc_log_probs
from retort.students.student import Encoded, Student
from retort.students.transducer import TransducerStudent
from retort.text.tokenizers import BLANK, EOS


class TokenStream(Tokens):
    """Tokens of one utterance of a model in torch."""

    @abstractmethod
    def advance(self, hidden: Tensor, alphas: Tensor | None, seconds: float) -> None:
        """Decode the next frames.

        Args:
            hidden: `(T, D)`.
            alphas: `(T,)`, weights of a CIF student; None for other students.
            seconds: duration of the audio so far.
        """


class CtcStream(TokenStream):
    """The CTC head's best path; a token is complete at the end of its run of frames."""

    def __init__(self, student: HasCtc) -> None:
        super().__init__()
        self.student = student
        self._frames = 0
        self._label, self._score, self._frame = BLANK, 0.0, 0
        self._seconds = 0.0  # at which the run began

    def advance(self, hidden: Tensor, alphas: Tensor | None, seconds: float) -> None:
        lengths = torch.tensor([len(hidden)], device=hidden.device)
        log_probs = ctc_log_probs(self.student, Encoded(hidden[None], lengths))[0]
        best, labels = log_probs.max(-1)
        for label, score in zip(labels.tolist(), best.tolist()):
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

    def advance(self, hidden: Tensor, alphas: Tensor | None, seconds: float) -> None:
        student = self.student
        for frame in student.joiner.project_encoder(hidden):
            for _ in range(student.config.transducer.symbols):
                logits = student.joiner(frame[None], self._projected)[1]
                best, token = symbol_log_probs(logits).max(-1)
                if int(token) == BLANK:
                    break
                self.emitted.ids.append(int(token))
                self.emitted.log_probs.append(float(best))
                self.emitted.ends.append(self._frames + 1.0)
                self.emitted.starts.append(float(self._frames))
                self.emitted.seconds.append(seconds)
                predicted, self._state = student.predictor.step(self._state, token)
                self._projected = student.joiner.project_predictor(predicted)
            self._frames += 1

    def finish(self, seconds: float) -> None:
        return


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
        self._previous = EOS
        self._hidden: Tensor | None = None  # frames that the decoder attends to
        self._base = 0  # first of these frames
        self._last: Tensor | None = None
        self._state: Any = None

    def advance(self, hidden: Tensor, alphas: Tensor | None, seconds: float) -> None:
        if alphas is None:
            raise ValueError("CIF needs the weights of the frames")
        if self.over:
            return
        self._remember(hidden)
        for vector, time in zip(*self.fires(hidden, alphas)):
            self._decode(vector, time, seconds)

    def finish(self, seconds: float) -> None:
        for vector, time in zip(*self.fires.finish(self.config.tail)):
            self._decode(vector, time, seconds)
        if (last := self._last) is not None:
            for _ in range(self.config.spare):
                self._decode(last, float(self.fires.frames), seconds)

    def size(self) -> int:
        hidden = 0 if self._hidden is None else self._hidden.numel()
        past = getattr(self._state, "past", [])
        return super().size() + hidden + sum(each.numel() for pair in past for each in pair)

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

    def _decode(self, vector: Tensor, time: float, seconds: float) -> None:
        if self.over:
            return
        # As `retort.nn.window.fire_frames`, which rounds times as the model does.
        rounded = float(torch.tensor(time, dtype=torch.promote_types(vector.dtype, torch.float32)).ceil())
        place = min(max(int(rounded) - 1, 0), self.fires.frames - 1)
        logits, self._state = self._step(vector, place)
        log_probs = logits.float().log_softmax(-1)
        log_probs[:, NEVER_EMITTED] = float("-inf")
        score, token = log_probs.max(-1)
        self._previous = int(token)
        if self._previous == EOS:
            self.over = True
            return
        self.emitted.ids.append(self._previous)
        self.emitted.log_probs.append(float(score))
        self.emitted.ends.append(time)
        self.emitted.seconds.append(seconds)

    def _step(self, vector: Tensor, place: int) -> tuple[Tensor, Any]:
        decoder, device = self.decoder, vector.device
        previous = torch.tensor([self._previous], device=device)
        seen = torch.tensor([self.fires.frames], device=device)
        end = self.chunks.ends(torch.tensor([[place]], device=device), seen)
        if self._state is None:
            self._state = decoder.start(1, vector)
        if decoder.window is not None:
            assert self._hidden is not None
            size = self._state.steps + 1
            own = torch.tensor([[place - self._base]], device=device)
            memory: FrameMemory = decoder.window.remember(
                self._hidden[None], seen - self._base, own.expand(1, size), (end - self._base).expand(1, size)
            )
            self._state = replace(self._state, memory=memory)
        return decoder.step(self._state, previous, vector[None])


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

    def advance(self, hidden: Tensor, alphas: Tensor | None, seconds: float) -> None:
        if alphas is None:
            raise ValueError("CIF needs the weights of the frames")
        self._remember(hidden)
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        self.add(wide.cpu().numpy(), alphas.cpu().numpy(), seconds)

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
