"""Greedy decoding of transducers: frame by frame, the most probable symbol, a batch at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from retort.decoding.beam import NOTHING, Candidate
from retort.decoding.greedy import UNSAID, Hypothesis
from retort.students.student import Encoded
from retort.students.transducer import TransducerStudent
from retort.text.tokenizers import BLANK, EOS


def symbol_log_probs(logits: Tensor) -> Tensor:
    """Log-probabilities of blank and tokens, minus infinity where a transducer never says one."""
    log_probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    log_probs[..., UNSAID] = NOTHING
    return log_probs


@torch.inference_mode()
def greedy_transduced(student: TransducerStudent, encoded: Encoded, symbols: int = 1) -> list[Candidate]:
    """The path of the most probable symbol at every step, its score the sum over the path, blanks included.

    Args:
        student: in eval mode.
        encoded: B utterances.
        symbols: tokens that may come from one frame; behind the last of them the next frame follows without a blank.
    """
    batch, frames = encoded.hidden.shape[:2]
    heard = student.joiner.hear(encoded.hidden)
    predicted, state = student.predictor.start(batch, EOS)
    read = student.joiner.read(predicted)
    scores = torch.zeros(batch, dtype=torch.float64, device=heard.device)
    said: list[tuple[int, list[int], list[float]]] = []
    for frame in range(frames):
        speaking = encoded.lengths > frame
        for _ in range(symbols):
            best, token = symbol_log_probs(student.joiner(heard[:, frame], read)[1]).max(-1)
            token = token.masked_fill(~speaking, BLANK)
            scores += best.double().masked_fill(~speaking, 0.0)
            speaking = token != BLANK
            rows = speaking.nonzero()[:, 0]
            if not len(rows):
                break
            said.append((frame, token.tolist(), best.tolist()))
            predicted, after = student.predictor.step([each[rows] for each in state], token[rows])
            state = [each.index_copy(0, rows, own) for each, own in zip(state, after)]
            read = read.index_copy(0, rows, student.joiner.read(predicted))
    found = []
    for row, score in enumerate(scores.tolist()):
        own = [(tokens[row], sure[row], float(frame)) for frame, tokens, sure in said if tokens[row] != BLANK]
        hypothesis = Hypothesis(
            [token for token, _, _ in own],
            [sure for _, sure, _ in own],
            [frame + 1.0 for _, _, frame in own],
            [frame for _, _, frame in own],
        )
        found.append(Candidate(hypothesis, score))
    return found
