"""Modified beam search of transducers: at most one token a frame, all hypotheses of a whole batch at once.

Kang et al. 2022 (arXiv 2211.00484) and the code of k2's icefall. Every hypothesis goes on by blank or by one token in
every frame, so all of them have read the same frames and their scores can be compared as they are. The loss
(:mod:`retort.nn.transducer`) has paths with several tokens in a frame, and behind each frame's last one a blank; here
there are none. icefall decodes models of that loss in the same way. Of a monotonic one the score is the loss, negative.

Two hypotheses that have said the same are one: the probabilities of their paths add up. Here they are joined before the
beam is cut, in icefall behind that, so equal hypotheses never take the place of others.

Tokens, times and confidences are those of the more probable of the paths that were joined.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from retort.decoding.cif import NEG_INF, ScoredHypothesis
from retort.decoding.greedy import NOT_FRAME_LABELS, Hypothesis
from retort.decoding.prefix_tree import NO_NODE, NO_PARENT, ROOT, Joining, LmScores, PrefixTree
from retort.nn.predictor import State
from retort.students.student import Encoded
from retort.students.transducer import TransducerStudent
from retort.text.tokenizers import BLANK, EOS


def symbol_log_probs(logits: Tensor) -> Tensor:
    """Log-probabilities of blank and tokens, minus infinity where a transducer never says one."""
    log_probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    log_probs[..., NOT_FRAME_LABELS] = NEG_INF
    return log_probs


@torch.inference_mode()
def transducer_greedy(student: TransducerStudent, encoded: Encoded, symbols: int = 1) -> list[ScoredHypothesis]:
    """The path of the most probable symbol at every step, its score the sum over the path, blanks included.

    Args:
        student: in eval mode.
        encoded: B utterances.
        symbols: tokens that may come from one frame; behind the last of them the next frame follows without a blank.
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
        )
        found.append(ScoredHypothesis(hypothesis, score))
    return found


_OWN = -1  # in place of another hypothesis


@dataclass
class _Beams:
    """The N hypotheses kept of each utterance, best first.

    Attributes:
        scores: `(B, N)` float64, minus infinity where there is no hypothesis.
        nodes: `(B, N)` int64, what was said, as a node of the tree; -1 where there is no hypothesis.
        parents: `(B, N)`, the node before the last token; -2 where nothing was said.
        last: `(B, N)`, that token.
        predictor_proj: `(B, N, dim)`, what the joiner reads behind it.
        state: of the prediction network, B x N rows.
    """

    scores: Tensor
    nodes: Tensor
    parents: Tensor
    last: Tensor
    predictor_proj: Tensor
    state: State


class _Step(NamedTuple):
    """How the hypotheses of a frame came about, each `(B, N)`: from which of the frame before, by which symbol, and
    its log-probability."""

    origin: Tensor
    symbol: Tensor
    log_probs: Tensor


@torch.inference_mode()
def transducer_beam(
    student: TransducerStudent,
    encoded: Encoded,
    beam: int,
    scorer: Joining | None = None,
    length_weight: float = 0.0,
) -> list[list[ScoredHypothesis]]:
    """The most probable hypotheses of each utterance, best first: up to `beam`, at least one, all different.

    A scorer has its say of every token, none of blanks, and of EOS behind the last frame; it has none in the
    hypotheses' own log-probabilities.

    Args:
        student: in eval mode.
        encoded: B utterances.
        beam: hypotheses kept at every frame; with 1, without a scorer and a weight, it finds what greedy decoding with
            one token a frame finds.
        length_weight: added for every token. A transducer of little training says too few, as the probability of
            blanks adds up over all of them while that of a word is shared by what it may be.
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
    """One frame further.

    Args:
        beams: N hypotheses of each of B utterances.
        log_probs: `(B, N, V)`, the student's.
        gains: `(B, N, V)`, what a symbol adds to the score.
        running: `(B,)`, which utterances have this frame; in the others every hypothesis stays as it is.
        beam: hypotheses to keep.
    """
    batch, width, size = gains.shape
    utterance = torch.arange(batch, device=gains.device)[:, None]
    scores, joined = _scored(beams, gains, running)
    branches = min(beam, size)
    # Among equals topk may take another than the max of greedy decoding.
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
    """What each hypothesis is worth behind each symbol, those that say the same joined.

    A hypothesis goes on by blank, and one that lacks only its last token says that token: both have said the same, so
    the latter counts with the former.

    Returns:
        scores `(B, N, V)` float64, and which hypothesis `(B, N)` has the better path to what each is behind blank,
        where that is not its own: -1 where it is.
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


def _candidates(scores: Tensor, steps: list[_Step]) -> list[list[ScoredHypothesis]]:
    """The hypotheses of the last frame, followed back to the first."""
    scores, place = scores.sort(dim=1, descending=True, stable=True)
    trace: list[tuple[int, list[list[int]], list[list[float]]]] = []
    for frame in range(len(steps) - 1, -1, -1):
        step = steps[frame]
        symbols = step.symbol.gather(1, place)
        trace.append((frame, symbols.tolist(), step.log_probs.gather(1, place).tolist()))
        place = step.origin.gather(1, place)
    found: list[list[ScoredHypothesis]] = []
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
                ScoredHypothesis(Hypothesis(ids, log_probs, ends, [each - 1.0 for each in ends]), score)
            )
    return found
