"""Initialisation of the language part of a factored decoder with a language model that was trained on text."""

from __future__ import annotations

from torch import Tensor

from retort.common.errors import UserError
from retort.config.schema import Recipe
from retort.lm.factory import is_causal_lm, open_causal_lm
from retort.lm.neural import CausalTransformer, NeuralLM
from retort.nn.factored import LANGUAGE_PARTS, FactoredConfig, FactoredDecoder
from retort.students.student import Student
from retort.text.tokenizers import Tokenizer


def check_language(recipe: Recipe) -> None:
    """Check that the language model of `student.decoder.language` exists, without opening it.

    Raises:
        UserError: there is none.
    """
    folder = getattr(recipe.student.decoder_config, "language", "")
    if folder and not is_causal_lm(folder):
        raise UserError(
            "there is no causal language model here", where=folder, remedy="Train one with retort lm train"
        )


def take_language(student: Student, recipe: Recipe, tokenizer: Tokenizer) -> int:
    """Copy the weights of `student.decoder.language`; return the number of tensors, 0 without one.

    Raises:
        UserError: there is no Transformer, or its tokens or sizes are not those of the student.
    """
    config, decoder = recipe.student.decoder_config, getattr(student, "decoder", None)
    if not isinstance(config, FactoredConfig) or not config.language or not isinstance(decoder, FactoredDecoder):
        return 0
    lm = open_causal_lm(config.language, "cpu")
    if not isinstance(lm, NeuralLM) or not isinstance(lm.network, CausalTransformer):
        raise UserError("it is not a Transformer", where=config.language, remedy="Train one with model.kind: transformer")
    if lm.symbols != tokenizer.symbols:
        raise UserError(
            "its tokens are not those of the student",
            where=config.language,
            remedy="Train it with tokenizer.kind: student",
        )
    weights: dict[str, Tensor] = lm.network.state_dict()
    own = {name: value for name, value in decoder.state_dict().items() if name.startswith(LANGUAGE_PARTS)}
    if {name: each.shape for name, each in weights.items()} != {name: each.shape for name, each in own.items()}:
        size = lm.network.config
        raise UserError(
            f"it has {size.layers} layers of dim {size.dim} with feed-forward {size.feedforward}, the decoder "
            f"{config.layers} of dim {config.dim} with {config.feedforward}",
            where=config.language,
            remedy="Set layers, dim and feedforward of student.decoder to those of the language model",
        )
    decoder.load_state_dict(weights, strict=False)
    return len(weights)
