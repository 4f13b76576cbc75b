from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import pytest

from retort.common.errors import UserError
from retort.config.loading import load_recipe, recipe_names
from retort.config.schema import Recipe
from retort.decoding.options import DecodingOptions
from retort.info.describe import describe
from retort.sweeps.config import Sweep, View, load_sweep

WriteRecipe = Callable[..., Path]


packaged = cache(load_sweep)


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("sweeps/")])
def test_every_packaged_sweep_loads(name: str) -> None:
    sweep = packaged(name)
    assert f"sweeps/{sweep.name}" == name
    assert sweep.against in [row.name for row in sweep.rows]


def test_the_main_comparison_is_of_four_systems_and_three_seeds() -> None:
    sweep = packaged("sweeps/speechocean762_main")
    assert [row.name for row in sweep.rows] == ["cif", "acd", "lrd", "hkd"]
    assert [(run.recipe.system, run.recipe.seed) for run in sweep.runs] == [
        (system, seed) for seed in (1, 2, 3) for system in ("cif", "acd", "lrd", "hkd")
    ]
    assert sweep.against == "cif"
    assert sweep.views == (View("speechocean762/dev"),)


def test_the_study_of_losses_has_every_acoustic_loss_without_and_with_lrd() -> None:
    sweep = packaged("sweeps/losses")
    taps = {row.name: {each.tap: each.loss for each in row.runs[0].recipe.distill} for row in sweep.rows}
    acoustic = {None, "regression", "cosine", "contrastive"}
    without = [each.get("acoustic") for each in taps.values() if "linguistic" not in each]
    with_regression = [each.get("acoustic") for each in taps.values() if each.get("linguistic") == "regression"]
    assert (len(without), set(without)) == (len(with_regression), set(with_regression)) == (4, acoustic)
    assert {row.runs[0].recipe.system for row in sweep.rows} == set(taps)
    assert all(view.source == "speechocean762/dev" for view in sweep.views)


def test_the_study_of_weights_has_five_curves_through_the_recipe_itself() -> None:
    sweep = packaged("sweeps/weights")
    assert {view.source for view in sweep.views} == {"speechocean762/tune"}
    rows = {row.name: row for row in sweep.rows}
    assert rows["hkd"].curves.keys() == {"acd_weight", "lrd_weight", "temperature", "negatives", "layer"}
    values = [run.recipe for run in sweep.runs]
    for recipe in values:  # one thing at a time
        changed = recipe.distill != rows["hkd"].runs[0].recipe.distill
        assert (
            changed + (recipe.teachers != rows["hkd"].runs[0].recipe.teachers) <= 1 or recipe.system == "cif"
        )


@pytest.fixture
def write_sweep(write_recipe: WriteRecipe, tmp_path: Path) -> Callable[[str], Path]:
    """A sweep of this text, in which RECIPE stands for a recipe's path."""

    def write(text: str) -> Path:
        path = tmp_path / "sweep.yaml"
        path.write_text("name: study\n" + text.replace("RECIPE", str(write_recipe())))
        return path

    return write


def test_the_study_of_losses_takes_the_runs_of_the_main_comparison() -> None:
    known = {run.recipe.name: run for run in packaged("sweeps/speechocean762_main").runs}
    shared = [run for run in packaged("sweeps/losses").runs if run.recipe.name in known]
    assert len(shared) == 8
    assert all(run.recipe == known[run.recipe.name].recipe for run in shared)


def test_settings_come_in_their_order(write_sweep: Callable[[str], Path]) -> None:
    path = write_sweep(
        "seeds: [7]\ncommon: [training.steps=5, training.peak_lr=0.5]\n"
        "systems: {a: {recipe: RECIPE, set: [training.peak_lr=0.25]}, 'b c': {recipe: RECIPE}}"
    )
    sweep = load_sweep(str(path))
    assert sweep.against == "a"
    first, second = (run.recipe for run in sweep.runs)
    assert (first.training.peak_lr, second.training.peak_lr) == (0.25, 0.5)
    assert (first.training.steps, first.seed, first.name) == (5, 7, "study/a-7")
    assert second.name == "study/b-c-7"
    for run in sweep.runs:  # what is handed to `retort train` is the same recipe
        recipe, *overrides = run.arguments
        assert load_recipe(recipe, overrides) == run.recipe


def test_a_grid_has_a_row_for_every_combination(write_sweep: Callable[[str], Path]) -> None:
    path = write_sweep(
        "seeds: [1]\nsystems: {plain: {recipe: RECIPE}, one: {recipe: RECIPE, grid: {student.ctc_weight: [0.1, 1e-5]}},\n"
        "  two: {recipe: RECIPE, grid: {training.keep: [best, last], student.frontend.layers: [1, 2]}}}"
    )
    rows = {row.name: row for row in load_sweep(str(path)).rows}
    assert [name for name in rows if name.startswith("two")] == [
        f"two training.keep={keep} student.frontend.layers={layers}"
        for keep in ("best", "last")
        for layers in (1, 2)
    ]
    tiny = rows["one student.ctc_weight=1e-05"]
    assert tiny.curves == {"one": ("student.ctc_weight", 1e-5)}
    assert tiny.runs[0].recipe.student.ctc_weight == 1e-5
    assert tiny.runs[0].recipe.name == "study/one-student.ctc_weight=1e-05-1"
    assert rows["plain"].curves == {"one": ("student.ctc_weight", 0.5)}
    assert rows["two training.keep=best student.frontend.layers=1"].curves == {}


def test_what_stands_without_a_grid_is_not_trained_again(write_sweep: Callable[[str], Path]) -> None:
    path = write_sweep(
        "seeds: [1]\nsystems:\n  plain: {recipe: RECIPE}\n  other: {recipe: RECIPE, set: [student.cif.tail=0.4]}\n"
        "  weight: {recipe: RECIPE, grid: {student.ctc_weight: [0.1, 0.5]}}\n"
        "  steps: {recipe: RECIPE, grid: {training.steps: [6, 12, 24]}}\n"
        "  words: {recipe: RECIPE, grid: {training.keep: [best, last]}}\n"
    )
    rows = {row.name: row.curves for row in load_sweep(str(path)).rows}
    assert rows["plain"] == {"weight": ("student.ctc_weight", 0.5), "steps": ("training.steps", 12.0)}
    assert rows["other"] == {}
    assert [name for name in rows if name.startswith("weight")] == ["weight student.ctc_weight=0.1"]
    assert [name for name in rows if name.startswith("steps")] == [
        f"steps training.steps={n}" for n in (6, 24)
    ]
    assert len(rows) == 2 + 1 + 2 + 2


def test_every_way_of_decoding_is_a_view(write_sweep: Callable[[str], Path]) -> None:
    text = "seeds: [1]\nsystems: {a: {recipe: RECIPE, set: ['data.test=[x/one, x/two]']}}\n"
    sweep = load_sweep(str(write_sweep(text + "decode: {greedy: {}, wide: {beam: 4, nbest: 2}}")))
    wide = DecodingOptions(4, 2)
    assert sweep.views == (
        *(View(source, "greedy") for source in ("x/one", "x/two")),
        *(View(source, "wide", wide) for source in ("x/one", "x/two")),
    )
    assert [view.title for view in sweep.views][::3] == ["x/one, greedy", "x/two, wide"]
    assert sweep.scoring(sweep.runs[0], sweep.views[3]) == "study/a-1-wide-x-two"


def test_a_way_of_decoding_may_be_of_some_systems_alone(write_sweep: Callable[[str], Path]) -> None:
    text = (
        "seeds: [1]\nagainst: a\nsystems: {a: {recipe: RECIPE}, b: {recipe: RECIPE, grid: {training.steps: [5, 6]}}, "
        "c: {recipe: RECIPE}}\ndecode: {greedy: {}, wide: {beam: 4, systems: [c, b]}}"
    )
    sweep = load_sweep(str(write_sweep(text)))
    greedy, wide = sweep.views
    assert (wide.options, wide.rows) == (
        DecodingOptions(4),
        ("c", "b training.steps=5", "b training.steps=6"),
    )
    assert [row.name for row in sweep.rows_in(wide)] == ["b training.steps=5", "b training.steps=6", "c"]
    assert [len(sweep.views_of(run)) for run in sweep.runs] == [1, 2, 2, 2]
    assert (sweep.against_in(greedy), sweep.against_in(wide)) == ("a", "b training.steps=5")


def _alike(recipes: dict[str, Recipe], against: str) -> None:
    """In data and size, and the taught ones in all but their rows of distillation."""
    first = recipes[against]
    sizes = {name: describe(recipe).shipped for name, recipe in recipes.items()}
    for name, recipe in recipes.items():
        assert (recipe.data, recipe.augment, recipe.batches) == (first.data, first.augment, first.batches)
        near = 0.04 if recipe.student.kind != "ctc" else 0.3
        assert sizes[name] == pytest.approx(sizes[against], rel=near)
        taught = name.removesuffix("_bert").removesuffix("_hkd")
        if taught != name:
            assert (recipe.student, sizes[name]) == (recipes[taught].student, sizes[taught])
            assert recipe.training == recipes[taught].training
            assert recipe.distill
            assert not recipes[taught].distill


def _rescored_by_the_head_that_it_has(sweep: Sweep, recipes: dict[str, Recipe]) -> None:
    kinds = {"attention_rescoring": {"attention"}, "ctc_rescoring": {"cif", "transducer"}}
    for mode, expected in kinds.items():
        rescored = {name for view in sweep.views if view.options.mode == mode for name in view.rows}
        assert rescored == {name for name, recipe in recipes.items() if recipe.student.kind in expected}


def test_the_families_are_alike_in_all_but_what_they_are_distinguished_by() -> None:
    sweep = packaged("sweeps/speechocean762_families")
    recipes = {row.name: row.runs[0].recipe for row in sweep.rows}
    _alike(recipes, "cif")
    start = load_recipe("speechocean762/cif").training
    started = replace(start, warm_start="", init="models/speechocean762_cif", init_parts=["encoder", "ctc"])
    assert all(recipe.training == started for recipe in recipes.values())
    assert all(recipe.system == name for name, recipe in recipes.items())
    _rescored_by_the_head_that_it_has(sweep, recipes)
    distilled = {name for name, recipe in recipes.items() if recipe.distill}
    for view in sweep.views:  # a family with its distilled twin, decoded alike
        assert 2 * len(distilled & set(view.rows)) == len(view.rows)


def test_the_encoders_are_alike_in_all_else() -> None:
    sweep = packaged("sweeps/speechocean762_encoders")
    recipes = {row.name: row.runs[0].recipe for row in sweep.rows}
    _alike(recipes, "conformer")
    _rescored_by_the_head_that_it_has(sweep, recipes)
    of_cif = {"cif", "cif_hkd"}
    for name, recipe in recipes.items():
        kind = "conformer" if name in of_cif else name.removesuffix("_bert")
        assert recipe.student.kind == ("cif" if name in of_cif else "attention")
        assert recipe.student.encoder.kind == kind
        chain, updates = [recipe], []
        while chain[-1].training.warm_start:
            chain.append(load_recipe(chain[-1].training.warm_start))
            updates.append(chain[-1].training.steps)
            assert chain[-1].student.encoder.kind == kind
        assert updates == [3000, 800, 2000]


def test_a_study_never_names_the_test_data(write_sweep: Callable[[str], Path]) -> None:
    text = "seeds: [1]\nsystems: {a: {recipe: RECIPE}}\n"
    (scored,) = load_sweep(str(write_sweep(text))).views
    tuned = load_sweep(str(write_sweep(text + "score_on: validation")))
    assert scored.source.endswith("/test")
    sources = [view.source for view in tuned.views]
    assert tuned.runs[0].recipe.data.test == tuned.runs[0].recipe.data.validation == sources
    assert sources[0].endswith("/validation")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("systems: {}", "the sweep has no systems"),
        ("sistems: {}", "unknown key 'sistems'. Did you mean 'systems'?"),
        ("systems: {a: {recipes: RECIPE}}", "Did you mean 'recipe'?"),
        ("systems: {a: {recipe: no/such}}", "no such recipe"),
        ("systems: {a: {recipe: RECIPE, set: [training.step=3]}}", "Did you mean 'steps'?"),
        ("systems: {a: {recipe: RECIPE, grid: {training.steps: []}}}", "systems.a.grid.training.steps has no values"),
        ("systems: {a: {recipe: RECIPE}}\nagainst: b", "against is 'b'. Choose one of a"),
        ("systems: {a: {recipe: RECIPE}}\nseeds: [1, 1]", "seeds is [1, 1]"),
        ("systems: {a: {recipe: RECIPE}}\nscore_on: train", "Choose one of test, validation"),
        ("systems: {a: {recipe: RECIPE}}\ndecode: {b: {bean: 3}}", "unknown key 'decode.b.bean'. Keys are beam, nbest"),
        ("systems: {a: {recipe: RECIPE}}\ndecode: {b: {beam: wide}}", "decode.b: beam is wide"),
        ("systems: {a: {recipe: RECIPE}}\ndecode: {b: {nbest: 3}}", "decode.b: nbest 3 is larger than the beam of 1"),
        ("systems: {a: {recipe: RECIPE}}\ndecode: {b: {systems: [c]}}", "decode.b.systems is ['c']. Choose from a"),
        ("systems: {a: {recipe: RECIPE}}\ndecode: {b: {systems: []}}", "decode.b.systems is []"),
        ("systems: {a: {recipe: RECIPE}}\ndecode: {b: {systems: a}}", "decode.b.systems is a"),
        ("systems: {a: {recipe: RECIPE}}\ndecode: {b c: {}}", "decode has the name 'b c'"),
        ("systems: {a b: {recipe: RECIPE}, a-b: {recipe: RECIPE}}", "two rows have the same name study/a-b-1"),
        ("systems: {a: {recipe: RECIPE, set: ['data.test=[]']}}", "nothing to score on: data.test is empty"),
        (
            "systems: {a: {recipe: RECIPE}, b: {recipe: RECIPE, set: ['data.test=[x]']}}",
            "b is scored on other data than a",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(write_sweep: Callable[[str], Path], text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_sweep(str(write_sweep(text)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_stays_below_the_experiments(write_sweep: Callable[[str], Path]) -> None:
    path = str(write_sweep("systems: {a: {recipe: RECIPE}}"))
    for key, name in [*product(("name", "runs"), ("../up", "/root", "a b")), ("name", "''")]:
        with pytest.raises(UserError, match=f"{key} is"):
            load_sweep(path, [f"{key}={name}"])


def test_a_sweep_is_no_recipe() -> None:
    with pytest.raises(UserError, match="Run it with `retort sweep`"):
        load_recipe("sweeps/speechocean762_main")
