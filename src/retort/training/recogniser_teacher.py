"""A trained recogniser as a teacher: its token probabilities for given audio and text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from retort.common.errors import UserError
from retort.decoding.recogniser import load
from retort.pretrained.hub import find_model
from retort.students.cif import CifStudent
from retort.text.tokenizers import EOS


class LoadedRecogniser:
    """A CIF recogniser with given tokens: its weights are scaled to their number, as in training.

    Args:
        folder: of the model.
        device: device of the computation.

    Raises:
        UserError: there is no such model, or it is no CIF model.
    """

    def __init__(self, folder: str, device: torch.device | str = "cpu") -> None:
        self._recogniser = load(find_model(folder), device)
        if not isinstance(self._recogniser.student, CifStudent):
            raise UserError(
                f"a {self._recogniser.student.config.kind} model is no teacher",
                where=folder,
                remedy="Give a CIF model",
            )
        self.sampling_rate: int = self._recogniser.sampling_rate
        self.symbols: Sequence[str] = self._recogniser.tokenizer.symbols
        self.fingerprint: str = self._recogniser.fingerprint()

    @torch.no_grad()
    def log_probs(self, waves: Sequence[np.ndarray], tokens: Sequence[Sequence[int]]) -> list[Tensor | None]:
        """As :meth:`retort.teachers.recogniser.ForcedRecogniser.log_probs`."""
        own = self._recogniser
        features = [own._features(wave) for wave in waves]
        lengths = [len(each) for each in features]
        most = own.most_frames or max(lengths, default=0)
        good = [
            row for row, length in enumerate(lengths) if own.fewest_frames <= length <= most and tokens[row]
        ]
        found: list[Tensor | None] = [None] * len(waves)
        if not good:
            return found
        targets = [torch.tensor([*tokens[row], EOS]) for row in good]
        counts = torch.tensor([len(each) for each in targets], device=own.device)
        output = own.student(
            pad_sequence([features[row] for row in good], batch_first=True).to(own.device),
            torch.tensor([lengths[row] for row in good], device=own.device),
            pad_sequence(targets, batch_first=True).to(own.device),
            counts,
        )
        log_probs = output.taps["tokens"].values.float().log_softmax(-1)
        for row, each, count in zip(good, log_probs, counts.tolist()):
            found[row] = each[:count]
        return found
