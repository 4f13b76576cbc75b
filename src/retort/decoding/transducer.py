"""Modified beam search of transducers: at most one token per frame, batched over hypotheses and utterances.

Kang et al. 2022 (arXiv 2211.00484) and the code of k2's icefall. Every hypothesis is extended by blank or one
token in every frame, so all have consumed the same frames and their scores are comparable. Paths of the loss
(:mod:`retort.nn.transducer`) may have several tokens per frame, each frame's last one followed by a blank;
the search has neither. icefall decodes models of that loss in the same way. For a monotonic transducer the
score is the negative loss.

Hypotheses with equal token sequences are merged and their probabilities added. They are merged before pruning
(icefall merges after), so that equal hypotheses do not take places in the beam.

Tokens, times and confidences are those of the more probable of the merged paths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from retort.decoding.cif import NEG_INF
from retort.decoding.hypothesis import NOT_FRAME_LABELS, Hypothesis
from retort.decoding.prefix_tree import NO_NODE, NO_PARENT, ROOT, ConcatenableScorer, LmScores, PrefixTree
from retort.nn.predictor import State
from retort.students.student import Encoded
from retort.students.transducer import TransducerStudent
from retort.text.tokenizers import BLANK, EOS


def symbol_log_probs(logits: Tensor) -> Tensor:
    """Log-probabilities of blank and tokens; minus infinity for symbols that a transducer may not emit."""
    log_probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    log_probs[..., NOT_FRAME_LABELS] = NEG_INF
    return log_probs


@torch.inference_mode()
def transducer_greedy(student: TransducerStudent, encoded: Encoded, symbols: int = 1) -> list[Hypothesis]:
    """Greedy decoding; the score is the sum over the path, blanks included.

    Args:
        student: student in eval mode.
        encoded: B utterances.
        symbols: maximum number of tokens per frame; after the last of them the next frame follows without a
            blank.
    """
    batch, frames = encoded.hidden.shape[:2]
    encoder_proj = student.joiner.project_encoder(encoded.hidden)
    predicted, state = student.predictor.start(batch, EOS)
    predictor_proj = student.joiner.project_predictor(predicted)
    scores = torch.zeros(batch, dtype=torch.float64, device=encoder_proj.device)
    emitted: list[tuple[int, list[int], list[float]]] = []
    for frame in range(frames):
        running = encoded.lengths > frame
        for _ in range(symbols):
            best, token = symbol_log_probs(student.joiner(encoder_proj[:, frame], predictor_proj)[1]).max(-1)
            token = token.masked_fill(~running, BLANK)
            scores += best.double().masked_fill(~running, 0.0)
            running = token != BLANK
            rows = running.nonzero()[:, 0]
            if not len(rows):
                break
            emitted.append((frame, token.tolist(), best.tolist()))
            predicted, after = student.predictor.step([each[rows] for each in state], token[rows])
            state = [each.index_copy(0, rows, own) for each, own in zip(state, after)]
            predictor_proj = predictor_proj.index_copy(0, rows, student.joiner.project_predictor(predicted))
    found = []
    for row, score in enumerate(scores.tolist()):
        own = [(tokens[row], log_prob[row], float(frame)) for frame, tokens, log_prob in emitted if tokens[row] != BLANK]
        hypothesis = Hypothesis(
            [token for token, _, _ in own],
            [log_prob for _, log_prob, _ in own],
            [frame + 1.0 for _, _, frame in own],
            [frame for _, _, frame in own],
            score,
        )
        found.append(hypothesis)
    return found


_OWN = -1  # in place of another hypothesis


@dataclass
class _Beams:
    """N hypotheses of each of B utterances, best first.

    Attributes:
        scores: `(B, N)` float64, minus infinity for missing hypotheses.
        nodes: `(B, N)` int64, node of the token sequence in the prefix tree; -1 for missing hypotheses.
        parents: `(B, N)`, node without the last token; -2 for the empty sequence.
        last: `(B, N)`, the last token.
        predictor_proj: `(B, N, dim)`, projected output of the prediction network after the last token.
        state: state of the prediction network, B x N rows.
    """

    scores: Tensor
    nodes: Tensor
    parents: Tensor
    last: Tensor
    predictor_proj: Tensor
    state: State


class _Step(NamedTuple):
    """Back pointers of the hypotheses of a frame, each `(B, N)`: previous hypothesis, symbol, and
    log-probability of the symbol."""

    origin: Tensor
    symbol: Tensor
    log_probs: Tensor


@torch.inference_mode()
def transducer_beam(
    student: TransducerStudent,
    encoded: Encoded,
    beam: int,
    scorer: ConcatenableScorer | None = None,
    length_weight: float = 0.0,
) -> list[list[Hypothesis]]:
    """N-best list of each utterance: up to `beam` different hypotheses, at least one, best first.

    A scorer scores every token, but no blank, and EOS after the last frame; it does not change the
    hypotheses' own log-probabilities.

    Args:
        student: student in eval mode.
        encoded: B utterances.
        beam: number of hypotheses; 1 without a scorer and a length weight gives the result of greedy decoding
            with one token per frame.
        length_weight: score added for every token. An undertrained transducer deletes tokens, because the
            probability of blanks adds up over all of them while that of a word is divided among the
            alternatives.
    """
    batch, frames = encoded.hidden.shape[:2]
    device = encoded.hidden.device
    tree = PrefixTree()
    lm_scores = None if scorer is None else LmScores(scorer, device)
    encoder_proj = student.joiner.project_encoder(encoded.hidden)
    beams = _start(student, batch, device)
    steps: list[_Step] = []
    for frame in range(frames):
        log_probs = symbol_log_probs(student.joiner(encoder_proj[:, frame, None], beams.predictor_proj)[1])
        token_gains = torch.full_like(log_probs, length_weight)
        if lm_scores is not None:
            token_gains += lm_scores.after_all(beams.nodes, tree)
        token_gains[..., BLANK] = 0.0
        gains = log_probs + token_gains
        beams, step = _advance(student, beams, log_probs, gains, encoded.lengths > frame, beam, tree)
        steps.append(step)
    scores = beams.scores
    if lm_scores is not None:
        scores = scores + lm_scores.after_all(beams.nodes, tree)[..., EOS]
    return _candidates(scores, steps)


def _start(student: TransducerStudent, batch: int, device: torch.device) -> _Beams:
    predicted, state = student.predictor.start(batch, EOS)
    nodes = torch.full((batch, 1), ROOT, device=device)
    return _Beams(
        scores=torch.zeros(batch, 1, dtype=torch.float64, device=device),
        nodes=nodes,
        parents=torch.full_like(nodes, NO_PARENT),
        last=torch.full_like(nodes, BLANK),
        predictor_proj=student.joiner.project_predictor(predicted)[:, None],
        state=state,
    )


def _advance(
    student: TransducerStudent,
    beams: _Beams,
    log_probs: Tensor,
    gains: Tensor,
    running: Tensor,
    beam: int,
    tree: PrefixTree,
) -> tuple[_Beams, _Step]:
    """Extend the hypotheses by one frame.

    Args:
        beams: N hypotheses of each of B utterances.
        log_probs: `(B, N, V)` of the student.
        gains: `(B, N, V)`, increase of the score for each symbol.
        running: `(B,)`, whether the utterance has this frame; otherwise its hypotheses stay unchanged.
        beam: number of hypotheses to keep.
    """
    batch, width, size = gains.shape
    utterance = torch.arange(batch, device=gains.device)[:, None]
    scores, joined = _scored(beams, gains, running)
    branches = min(beam, size)
    # For ties, topk may select another token than the max of greedy decoding.
    best, symbols = scores.max(-1, keepdim=True) if branches == 1 else scores.topk(branches)
    values, order = best.flatten(1).sort(dim=1, descending=True, stable=True)
    values, order = values[:, :beam], order[:, :beam]
    rows, symbols = order // branches, symbols.flatten(1).gather(1, order)
    emits = (symbols != BLANK) & (values > NEG_INF)

    through = torch.where(emits, _OWN, joined[utterance, rows])
    origin = through.where(through != _OWN, rows)
    emitted = torch.where(through != _OWN, beams.last[utterance, rows], symbols.where(emits, BLANK))
    own = log_probs[utterance, origin, emitted]

    before = beams.nodes[utterance, rows]
    after = before.masked_fill(values == NEG_INF, NO_NODE)
    places = emits.nonzero(as_tuple=True)
    after[places] = tree.children(before[places], symbols[places])
    parents = torch.where(emits, before, beams.parents[utterance, rows])

    flat = (utterance * width + rows).flatten()
    state = [each[flat] for each in beams.state]
    predictor_proj = beams.predictor_proj[utterance, rows]
    if bool(emits.any()):
        moved = emits.flatten().nonzero()[:, 0]
        predicted, stepped = student.predictor.step([each[moved] for each in state], symbols[places])
        state = [each.index_copy(0, moved, new) for each, new in zip(state, stepped)]
        predictor_proj[places] = student.joiner.project_predictor(predicted)
    last = torch.where(emits, symbols, beams.last[utterance, rows])
    parents = parents.masked_fill(values == NEG_INF, NO_PARENT)
    return _Beams(values, after, parents, last, predictor_proj, state), _Step(origin, emitted, own)


def _scored(beams: _Beams, gains: Tensor, running: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of each hypothesis with each next symbol; equal sequences are merged.

    A hypothesis extended by blank and its prefix extended by its last token are the same sequence, so the
    score of the latter is added to the former.

    Returns:
        Scores `(B, N, V)` float64, and for the blank of each hypothesis the index `(B, N)` of the hypothesis
        with the more probable path; -1 if it is its own.
    """
    stay = torch.zeros_like(gains[0, 0]).fill_(NEG_INF)
    stay[BLANK] = 0.0
    scores = beams.scores[..., None] + torch.where(running[:, None, None], gains, stay).double()
    utterance, shorter, longer = (
        (beams.nodes[:, :, None] == beams.parents[:, None]) & running[:, None, None]
    ).nonzero(as_tuple=True)
    token = beams.last[utterance, longer]
    extended, stayed = scores[utterance, shorter, token], scores[utterance, longer, BLANK]
    scores[utterance, longer, BLANK] = torch.logaddexp(extended, stayed)
    scores[utterance, shorter, token] = NEG_INF
    joined = torch.full_like(beams.nodes, _OWN)
    joined[utterance, longer] = torch.where(extended > stayed, shorter, _OWN)
    return scores, joined


def _candidates(scores: Tensor, steps: list[_Step]) -> list[list[Hypothesis]]:
    """Trace the hypotheses of the last frame back to the first."""
    scores, place = scores.sort(dim=1, descending=True, stable=True)
    trace: list[tuple[int, list[list[int]], list[list[float]]]] = []
    for frame in range(len(steps) - 1, -1, -1):
        step = steps[frame]
        symbols = step.symbol.gather(1, place)
        trace.append((frame, symbols.tolist(), step.log_probs.gather(1, place).tolist()))
        place = step.origin.gather(1, place)
    found: list[list[Hypothesis]] = []
    for row, own in enumerate(scores.tolist()):
        found.append([])
        for column, score in enumerate(own):
            if score == NEG_INF:
                continue
            ids, log_probs, ends = [], [], []
            for frame, emitted, values in reversed(trace):
                if emitted[row][column] != BLANK:
                    ids.append(emitted[row][column])
                    log_probs.append(values[row][column])
                    ends.append(frame + 1.0)
            found[-1].append(
                Hypothesis(ids, log_probs, ends, [each - 1.0 for each in ends], score=score)
            )
    return found
