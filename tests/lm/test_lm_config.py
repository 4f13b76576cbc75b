from __future__ import annotations

from pathlib import Path

import pytest

from retort.common.errors import UserError
from retort.config.loading import OTHER_KINDS, load_recipe, recipe_names
from retort.lm.config import load_lm_recipe

RECIPE = "name: toy\ntext: [{source: a.txt}]\nheld_out: [b.txt]\n"


@pytest.fixture(scope="module")
def scored() -> set[str]:
    """What the packaged recognisers are scored on."""
    recognisers = [name for name in recipe_names() if not name.startswith(tuple(OTHER_KINDS))]
    return {source for name in recognisers for source in load_recipe(name).data.test}


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("lm/")])
def test_packaged_recipes_never_learn_from_what_scores(name: str, scored: set[str]) -> None:
    recipe = load_lm_recipe(name)
    assert recipe.name == name
    learned = {each.source for each in recipe.text}
    assert {"speechocean762/dev", "commonvoice_zh/dev", "aishell1/test.jsonl.gz"} <= scored
    assert not scored & (learned | set(recipe.held_out))
    assert not learned & set(recipe.held_out)


def test_overrides_lie_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text(RECIPE)
    recipe = load_lm_recipe(str(path), ["training.steps=7", "text=[{source: c.txt, repeat: 3}]"])
    assert (recipe.training.steps, recipe.text[0].source, recipe.text[0].repeat) == (7, "c.txt", 3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("kind=prefix", "kind is 'prefix'. Choose one of masked, causal, ngram"),
        ("kind=causal", "tokenizer.kind is 'wordpiece'. Choose one of student, characters, bpe, words"),
        ("tokenizer.kind=bpe", "tokenizer.kind is 'bpe'. Choose one of wordpiece"),
        ("model.kind=lstm", "model.kind is 'lstm'. Choose one of transformer"),
        ("tokenizer.model=a", "for no other kind"),
        ("model.dropout=1.0", "model.dropout is 1"),
        ("training.schedule=steep", "training.schedule is 'steep'"),
        ("training.optimiser=sgd", "training.optimiser is 'sgd'"),
        ("training.eden_steps=0", "training.eden_steps is 0"),
        ("student.kind=cif", "unknown key 'student'"),
        ("training.mask=0.2", "Did you mean 'masking'"),
        ("text=[]", "text is empty: there is nothing to train on"),
        ("held_out=[]", "held_out is empty: there is nothing to validate on"),
        ("text=[{source: a.txt, repeat: 0}]", "text[0].repeat is 0"),
        ("training.masking=1.0", "training.masking is 1"),
        ("model.heads=3", "model.dim 256 is not a multiple of model.heads 3"),
        ("batches.longest=9999", "Choose 3 <= longest <= pieces"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, override: str, message: str) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text(RECIPE)
    with pytest.raises(UserError) as caught:
        load_lm_recipe(str(path), [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tokenizer.kind=student", "for no other kind"),
        ("model.kind=rnn", "model.kind is 'rnn'. Choose one of transformer, lstm"),
        ("init=a", "init applies to masked models"),
        ("ngram.arpa=a.arpa", "the student whose tokens the file has"),
        ("ngram.order=0", "ngram.order is 0"),
        ("ngram.prune=[2,1]", "non-decreasing thresholds"),
        ("ngram.prune=[-1]", "ngram.prune is [-1]"),
    ],
)
def test_what_is_wrong_with_a_causal_model_is_one_line(tmp_path: Path, override: str, message: str) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text(RECIPE + "kind: causal\ntokenizer: {kind: bpe, size: 50}\n")
    load_lm_recipe(str(path))
    with pytest.raises(UserError) as caught:
        load_lm_recipe(str(path), [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recogniser_is_not_trained_by_a_language_models_recipe() -> None:
    with pytest.raises(UserError, match="retort lm train"):
        load_recipe("lm/english_bert")


UNITS = "units={unit: senone, alignments: a, lexicon: [b.txt], pronounce: true}"


@pytest.mark.parametrize("kind", ["masked", "causal", "ngram"])
def test_every_kind_may_be_over_units(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text(RECIPE)
    recipe = load_lm_recipe(str(path), [UNITS, "tokenizer.kind=words", f"kind={kind}"])
    assert (recipe.units.unit, recipe.units.lexicon, recipe.units.sample) == ("senone", ["b.txt"], False)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["units.unit=word"], "units.unit is 'word'. Choose one of , senone, phone"),
        (["units.unit=phone"], "units.unit is 'phone', units.alignments ''. Set both"),
        (["units.alignments=a"], "units.unit is '', units.alignments 'a'. Set both"),
        ([UNITS], "tokenizer.kind is 'wordpiece', but the model is over senones. Set tokenizer.kind=words"),
        ([UNITS, "tokenizer.kind=words", "normaliser.spaces=drop"], "normaliser.spaces is 'drop'"),
        ([UNITS, "tokenizer.kind=words", "init=a"], "init is 'a', but the model is over senones. Set init="),
    ],
)
def test_what_is_wrong_with_units_is_one_line(tmp_path: Path, overrides: list[str], message: str) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text(RECIPE)
    with pytest.raises(UserError) as caught:
        load_lm_recipe(str(path), overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
