"""Prediction networks and the joiner of transducers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retort.common.errors import UserError
from retort.config.ranges import MILLION, WIDEST, choice, number
from retort.nn.cpu_kernels import Dropout

State = list[Tensor]
"""State of a prediction network: tensors whose first axis is the hypothesis. Their sizes do not depend on the
number of tokens, so hypotheses of any lengths can be batched."""


@dataclass
class TransducerConfig:
    """Prediction network and joiner of a transducer."""

    predictor: str = choice("stateless", "lstm")
    """Prediction network: `stateless` (a convolution over the last tokens) or `lstm`."""
    context: int = number(2, 1, 1000)
    """For `stateless`: number of previous tokens."""
    layers: int = number(1, 1, 1000)
    """For `lstm`: number of layers."""
    dim: int = number(512, 1, WIDEST)
    """Width of the prediction network."""
    joiner_dim: int = number(512, 1, WIDEST)
    """Width of the joiner. Time and memory of training are proportional to it, and to frames times tokens."""
    dropout: float = number(0.1, 0, 1, below=True)
    """Dropout probability in the prediction network."""
    monotonic: bool = False
    """Whether the loss also allows at most one token per frame, as decoding does by default."""
    symbols: int = number(1, 1, 1000)
    """Maximum number of tokens per frame in greedy search; beam search outputs at most one."""
    weight: float = number(1.0, 0, MILLION)
    """Weight of the transducer loss."""

    def validate(self, key: str) -> None:
        """Check the values against each other.

        Raises:
            UserError: names the key, its value and what is permitted.
        """
        if self.monotonic and self.symbols > 1:
            raise UserError(
                f"{key}.symbols is {self.symbols}, but monotonic allows one token per frame", remedy="Remove symbols"
            )


class Predictor(nn.Module, ABC):
    """Base class of prediction networks.

    Args:
        config: sizes of the network.
        vocabulary: number of ids, including special ones.
    """

    def __init__(self, config: TransducerConfig, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, config.dim)
        self.dropout = Dropout(config.dropout)

    @abstractmethod
    def forward(self, tokens: Tensor, start: int) -> Tensor:
        """Outputs at all positions, with given tokens.

        Args:
            tokens: `(B, U)` int64.
            start: id of the start symbol.

        Returns:
            `(B, U + 1, dim)`: output at position u after u tokens.
        """

    @abstractmethod
    def start(self, rows: int, start: int) -> tuple[Tensor, State]:
        """Output before the first token, `(rows, dim)`, and the state there."""

    @abstractmethod
    def step(self, state: State, token: Tensor) -> tuple[Tensor, State]:
        """Output `(M, dim)` and state after `token (M,)` int64."""


class StatelessPredictor(Predictor):
    """Embedding, convolution over the last few tokens and ReLU (Ghodsi et al. 2020; sizes as in k2's icefall).

    The convolution is over all channels, while icefall's has groups of four channels.
    """

    def __init__(self, config: TransducerConfig, vocabulary: int) -> None:
        super().__init__(config, vocabulary)
        self.context = config.context
        self.convolution = nn.Conv1d(config.dim, config.dim, config.context, bias=False)

    def forward(self, tokens: Tensor, start: int) -> Tensor:
        embedded = self.dropout(self.embedding(F.pad(tokens, (self.context, 0), value=start)))
        return F.relu(self.convolution(embedded.transpose(1, 2)).transpose(1, 2))

    def start(self, rows: int, start: int) -> tuple[Tensor, State]:
        last = torch.full((rows, self.context), start, device=self.embedding.weight.device)
        return self._read(last), [last]

    def step(self, state: State, token: Tensor) -> tuple[Tensor, State]:
        last = torch.cat((state[0][:, 1:], token[:, None]), dim=1)
        return self._read(last), [last]

    def _read(self, last: Tensor) -> Tensor:
        embedded = self.dropout(self.embedding(last))
        return F.relu(self.convolution(embedded.transpose(1, 2))[..., 0])


class LstmPredictor(Predictor):
    """Embedding and LSTM layers of the same width (Graves 2012)."""

    def __init__(self, config: TransducerConfig, vocabulary: int) -> None:
        super().__init__(config, vocabulary)
        between = config.dropout if config.layers > 1 else 0.0
        self.lstm = nn.LSTM(config.dim, config.dim, config.layers, batch_first=True, dropout=between)

    def forward(self, tokens: Tensor, start: int) -> Tensor:
        embedded = self.dropout(self.embedding(F.pad(tokens, (1, 0), value=start)))
        hidden: Tensor = self.dropout(self.lstm(embedded)[0])
        return hidden

    def start(self, rows: int, start: int) -> tuple[Tensor, State]:
        weight = self.embedding.weight
        nothing = weight.new_zeros(rows, self.lstm.num_layers, self.lstm.hidden_size)
        return self.step([nothing] * 2, torch.full((rows,), start, device=weight.device))

    def step(self, state: State, token: Tensor) -> tuple[Tensor, State]:
        past = tuple(each.transpose(0, 1).contiguous() for each in state)
        hidden, after = self.lstm(self.dropout(self.embedding(token))[:, None], past)
        return self.dropout(hidden[:, 0]), [each.transpose(0, 1) for each in after]


PREDICTORS: dict[str, type[StatelessPredictor] | type[LstmPredictor]] = {
    "stateless": StatelessPredictor,
    "lstm": LstmPredictor,
}
"""Classes by `transducer.predictor`."""


class Joiner(nn.Module):
    """`output(tanh(acoustic(hidden) + linguistic(predicted)))` (Graves et al. 2013, as k2's icefall has it).

    The two sides are projected once, by :meth:`project_encoder` and :meth:`project_predictor`, and then added.

    Args:
        acoustic_dim: width of the encoder's hidden frames.
        linguistic_dim: width of the prediction network.
        dim: inner width.
        vocabulary: number of ids, including blank and the other special ones.
    """

    def __init__(self, acoustic_dim: int, linguistic_dim: int, dim: int, vocabulary: int) -> None:
        super().__init__()
        self.acoustic = nn.Linear(acoustic_dim, dim)
        self.linguistic = nn.Linear(linguistic_dim, dim, bias=False)
        self.output = nn.Linear(dim, vocabulary)

    def project_encoder(self, hidden: Tensor) -> Tensor:
        """`(..., acoustic_dim)` to `(..., dim)`."""
        encoder_proj: Tensor = self.acoustic(hidden)
        return encoder_proj

    def project_predictor(self, predicted: Tensor) -> Tensor:
        """`(..., linguistic_dim)` to `(..., dim)`."""
        predictor_proj: Tensor = self.linguistic(predicted)
        return predictor_proj

    def forward(self, encoder_proj: Tensor, predictor_proj: Tensor) -> tuple[Tensor, Tensor]:
        """States `(..., dim)` and logits `(..., V)` of two broadcastable inputs."""
        states = torch.tanh(encoder_proj + predictor_proj)
        return states, self.output(states)

    def over_lattices(
        self, encoder_proj: Tensor, predictor_proj: Tensor, lengths: Tensor, token_lengths: Tensor
    ) -> Tensor:
        """Logits `(N, V)` of all lattice cells of a batch, utterance by utterance, frame by frame.

        Only cells of the lattices are computed: N is the sum of T_b (U_b + 1).

        Args:
            encoder_proj: `(B, T, dim)`.
            predictor_proj: `(B, U + 1, dim)`.
            lengths: `(B,)`, number of frames T_b.
            token_lengths: `(B,)`, number of tokens U_b.
        """
        sums = [
            (frames[:length, None] + places[None, : count + 1]).flatten(0, 1)
            for frames, places, length, count in zip(
                encoder_proj, predictor_proj, lengths.tolist(), token_lengths.tolist()
            )
        ]
        logits: Tensor = self.output(torch.tanh(torch.cat(sums)))
        return logits
