"""The weights of another model that a student starts from."""

from __future__ import annotations

from pathlib import Path

from retort.errors import UserError
from retort.students.student import Student
from retort.text.opening import open_tokenizer
from retort.text.tokenizers import Tokenizer
from retort.training.checkpoints import read_weights


def start_from(student: Student, tokenizer: Tokenizer | None, experiment: str) -> dict[str, int]:
    """Copy the weights of another model that fit by name and shape; counts of tensors taken and left.

    What belongs to the vocabulary (:attr:`Student.vocabulary_parts`) is taken only from a model with the same
    vocabulary in the same order; without a tokenizer not at all.

    Raises:
        UserError: no model there, or nothing of it fits.
    """
    path = model_folder(experiment)
    weights, own = read_weights(path / "model.safetensors"), student.state_dict()
    other = tokenizer is None or open_tokenizer(path / "tokenizer").symbols != tokenizer.symbols
    fitting = {
        name: value
        for name, value in weights.items()
        if name in own
        and own[name].shape == value.shape
        and not (other and name.startswith(student.vocabulary_parts))
    }
    if not fitting:
        raise UserError("none of its weights fit this student", where=experiment)
    student.load_state_dict(fitting, strict=False)
    return {"taken": len(fitting), "not_used": len(weights) - len(fitting), "fresh": len(own) - len(fitting)}


def model_folder(experiment: str) -> Path:
    """The folder of a trained model: that of an experiment, or the folder itself.

    Raises:
        UserError: there is none.
    """
    root = Path(experiment)
    for path in (root / "model", root):
        if (path / "model.safetensors").is_file():
            return path
    raise UserError(
        "no trained model here", where=experiment, remedy="training.init takes an experiment's folder"
    )
