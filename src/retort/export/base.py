"""The pretrained model that an experiment started from."""

from __future__ import annotations

from pathlib import Path

from retort.common.errors import UserError
from retort.common.json_reader import read_json


def base_of(experiment: Path) -> str:
    """`student.encoder.model` of the recipe in the folder of an experiment or a release.

    Raises:
        UserError: there is no recipe, or it has no such model.
    """
    remedy = "Set the model that the training started from: --base whisper-base"
    for path in (experiment / "recipe.json", experiment.parent / "recipe.json"):
        try:
            recipe = read_json(path)
            found = str(recipe["student"]["encoder"]["model"] or recipe["tokenizer"].get("model", ""))
        except OSError:
            continue
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError("not the recipe of an experiment", where=path, remedy=remedy) from None
        if found:
            return found
        raise UserError("its recipe has no pretrained model", where=path, remedy=remedy)
    raise UserError("there is no recipe.json with the name of the model", where=experiment, remedy=remedy)
