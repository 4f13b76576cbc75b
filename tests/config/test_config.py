from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest

from retort.common.errors import UserError
from retort.config.keys import Key, keys_of
from retort.config.layers import overlay_names
from retort.config.loading import (
    differing,
    load_recipe,
    recipe_from_dict,
    recipe_names,
    recipe_to_dict,
)
from retort.config.merging import UnknownKey
from retort.config.schema import Recipe
from retort.info.describe import describe
from retort.nn.conformer import ConformerConfig, TransformerConfig
from retort.nn.cross_decoder import CrossDecoderConfig
from retort.nn.frontend import Conv2dConfig
from retort.students.attention import AttentionStudentConfig
from retort.students.cif import CifStudentConfig
from retort.students.ctc import CtcStudentConfig

CHOSEN = [
    key for key in keys_of() if key.kind == "str" and key.values and not key.of and not re.search(r"\[\]|NAME", key.name)
]
"""Keys of every recipe for one of several words."""


def refused(recipe: str | Path, *overrides: str) -> UserError:
    with pytest.raises(UserError) as caught:
        load_recipe(str(recipe), overrides)
    assert "\n" not in str(caught.value)
    return caught.value


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_the_recipes_of_the_two_systems_are_packaged() -> None:
    expected = {
        f"{data}/{system}"
        for data in ("aishell1", "librispeech", "speechocean762")
        for system in ("cif", "acd", "lrd", "hkd")
    }
    assert expected <= set(recipe_names())


def test_the_table_of_recipes_and_papers_names_recipes_that_there_are() -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    table = page.partition("## Which recipe follows which paper\n")[2].partition("\n## ")[0]
    cells = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `")][1:]
    named = {name for cell in cells for name in re.findall(r"`([+\w/]+)`", cell)}
    known = {name.removeprefix("speechocean762/") for name in recipe_names()}
    assert named <= known | {f"+{overlay}" for overlay in overlay_names()}
    assert {"cif", "hkd", "+distill/pooled_attention", "+family/transducer"} <= named


@pytest.mark.parametrize("system", ["cif", "acd", "lrd", "hkd"])
def test_librispeech_has_the_settings_that_are_published_for_aishell1(system: str) -> None:
    known, pieces, bpe = (
        load_recipe(name)
        for name in (f"aishell1/{system}", f"librispeech/{system}", f"librispeech/{system}_bpe")
    )
    for recipe in (pieces, bpe):
        assert (recipe.student, recipe.distill, recipe.system) == (known.student, known.distill, system)
        assert system != "cif" or not recipe.distill
        assert (recipe.training, recipe.augment, recipe.batches) == (
            known.training,
            known.augment,
            known.batches,
        )
        assert recipe.teachers["bert"].model == "bert-base-uncased"
        assert not {*recipe.data.train, *recipe.data.validation} & set(recipe.data.test)
    assert (pieces.tokenizer.kind, bpe.tokenizer.kind) == ("teacher", "bpe")


@pytest.mark.parametrize("name", ["aishell1/hkd", "speechocean762/cif"])
def test_a_recipe_survives_json(name: str) -> None:
    recipe = load_recipe(name, ["seed=7"])
    again = recipe_from_dict(json.loads(json.dumps(recipe_to_dict(recipe))), "saved")
    assert isinstance(again, Recipe)
    assert again == recipe


def test_defaults_then_base_then_recipe_then_overrides(tmp_path: Path) -> None:
    base = write(tmp_path, "name: base\nseed: 2\ntraining: {steps: 20, clip: 5.0}\n", "base.yaml")
    middle = write(tmp_path, f"base: {base}\nname: middle\ntraining: {{steps: 30}}\n", "middle.yaml")
    top = write(tmp_path, f"base: {middle}\nname: top\ndata: {{train: [a, b]}}\n", "top.yaml")
    recipe = load_recipe(
        str(top), ["training.peak_lr=1e-3", "student.encoder.pool_after=[1]", "data.test=[x]"]
    )
    assert (recipe.name, recipe.seed, recipe.training.steps) == ("top", 2, 30)
    assert (recipe.training.clip, recipe.training.peak_lr) == (5.0, 1e-3)
    assert recipe.student.encoder.pool_after == [1]
    assert recipe.data.train == ["a", "b"]
    assert recipe.data.test == ["x"]
    assert recipe.training.schedule == Recipe(name="x").training.schedule
    assert load_recipe(str(top), ["seed=3", "seed=4"]).seed == 4


def test_a_part_that_changes_its_kind_starts_afresh(tmp_path: Path) -> None:
    encoder = "{kind: conformer, layers: 6, dim: 144, kernel: 9}"
    base = write(tmp_path, f"name: base\nstudent: {{encoder: {encoder}, frontend: {{layers: 2}}}}\n", "base.yaml")
    same = load_recipe(str(write(tmp_path, f"base: {base}\nname: same\nstudent: {{encoder: {{layers: 2}}}}\n")))
    assert (same.student.encoder.layers, same.student.encoder.dim) == (2, 144)
    other = f"base: {base}\nname: other\nstudent: {{encoder: {{kind: transformer, dim: 64}}}}\n"
    changed = load_recipe(str(write(tmp_path, other)))
    assert changed.student.encoder == TransformerConfig(dim=64)
    assert changed.student.frontend == Conv2dConfig(layers=2)
    # Overrides are one layer: their order does not matter.
    for overrides in itertools.permutations(["student.encoder.kind=transformer", "student.encoder.dim=64"]):
        assert load_recipe(str(base), overrides).student.encoder == TransformerConfig(dim=64)


def test_a_student_that_changes_its_kind_keeps_the_parts_of_the_new_kind(tmp_path: Path) -> None:
    student = "{cif: {tail: 0.3}, ctc_weight: 0.2, encoder: {layers: 3}, decoder: {layers: 3, window: 2}}"
    base = str(write(tmp_path, f"name: base\nstudent: {student}\n"))
    assert load_recipe(base, ["student.kind=ctc"]).student == CtcStudentConfig(encoder=ConformerConfig(layers=3))
    attention = load_recipe(base, ["student.kind=attention"]).student
    assert attention == AttentionStudentConfig(
        encoder=ConformerConfig(layers=3), decoder=CrossDecoderConfig(layers=3), ctc_weight=0.5
    )
    for override in ("student.decoder.layers=2", "student.cif.tail=0.4", "student.faithful=true"):
        error = refused(base, "student.kind=ctc", override)
        assert isinstance(error, UnknownKey)
        assert override in error.where


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("training.steps=abc", "an integer"),
        ("training.betas=[a, b]", "a list of numbers"),
        ("student.faithful=maybe", "true or false"),
        ("training.rates=3", "a mapping"),
        ("training.init=[x]", "text"),
        ("teachers=bert", "a mapping"),
        ("teachers.plm=bert", "model"),
        ("student.encoder=conformer", "student.encoder.kind: conformer"),
        ("student.encoder=[1]", "dropout"),
        ("features=null", "kind"),
        ("distill=[acd]", "tap"),
    ],
)
def test_a_wrong_type_is_named_in_plain_words(override: str, remedy: str) -> None:
    error = refused("aishell1/cif", override)
    assert override in error.where
    assert remedy in error.remedy
    assert not re.search("Config|subclass|assign|OmegaConf", str(error))


def test_a_base_may_be_a_packaged_recipe(tmp_path: Path) -> None:
    path = write(tmp_path, "base: aishell1/hkd\nname: mine\n")
    recipe = load_recipe(str(path))
    assert recipe.name == "mine"
    assert [row.loss for row in recipe.distill] == ["contrastive", "regression"]


def test_several_bases_one_after_the_other_and_none_of_them_twice(tmp_path: Path) -> None:
    write(tmp_path, "seed: 1\nname: root\ntraining: {steps: 10, clip: 5.0, log_steps: 7}\n", "root.yaml")
    write(tmp_path, "base: root.yaml\nseed: 2\ntraining: {steps: 20}\n", "left.yaml")
    write(tmp_path, "base: root.yaml\nseed: 3\ntraining: {clip: 6.0}\n", "right.yaml")
    recipe = load_recipe(str(write(tmp_path, "base: [left.yaml, right.yaml]\nname: top\n")))
    assert (recipe.name, recipe.seed, recipe.training.log_steps) == ("top", 3, 7)
    # The root that both stand on does not come again between them.
    assert (recipe.training.steps, recipe.training.clip) == (20, 6.0)
    assert "nowhere" in str(refused(write(tmp_path, "base: [left.yaml, nowhere.yaml]\nname: a\n")))


def test_a_base_that_goes_in_a_circle(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    write(tmp_path, f"base: {second}\nname: a\n", "first.yaml")
    write(tmp_path, f"base: {first}\nname: b\n", "second.yaml")
    assert "circular" in str(refused(first))
    alone = write(tmp_path, f"base: {tmp_path / 'alone.yaml'}\nname: a\n", "alone.yaml")
    assert "circular" in str(refused(alone))


def test_a_base_that_is_missing(tmp_path: Path) -> None:
    assert "no such" in str(refused(write(tmp_path, "base: nowhere.yaml\nname: a\n")))
    assert "aishell1/cif" in str(refused(write(tmp_path, "base: aishell1/ciff\nname: a\n")))


def test_no_such_recipe() -> None:
    assert "Did you mean aishell1/hkd" in str(refused("aishell1/hdk"))
    assert "retort recipes" in str(refused("nothing like it"))
    assert "no such file" in str(refused("nowhere/at/all.yaml"))


@pytest.mark.parametrize(
    ("text", "key", "near"),
    [
        ("trainig: {steps: 3}", "trainig", "training"),
        ("training: {stesp: 3}", "training.stesp", "steps"),
        ("student: {encoder: {positons: rotary}}", "student.encoder.positons", "positions"),
        ("teachers: {bert: {modle: x}}", "modle", "model"),
        ("distill: [{tap: acoustic, teacher: b, loss: cosine, wieght: 1}]", "wieght", "weight"),
    ],
)
def test_an_unknown_key_names_the_near_one(tmp_path: Path, text: str, key: str, near: str) -> None:
    path = write(tmp_path, f"name: x\n{text}\n")
    error = refused(path)
    assert error.where == str(path)
    assert "unknown key" in error.what
    assert key in error.what
    assert f"'{near}'" in error.remedy


@pytest.mark.parametrize(
    ("override", "known"),
    [
        ("steps=3", "'training.steps'"),
        ("tap=acoustic", "'distill[].tap'"),
        ("topk=4", "'teachers.NAME.topk'"),
        ("channels=8", "'student.frontend.channels'"),
    ],
)
def test_a_key_that_stands_elsewhere_is_reported_with_its_place(override: str, known: str) -> None:
    assert known in refused("aishell1/cif", override).remedy


def test_an_unknown_key_in_an_override_names_the_override() -> None:
    error = refused("aishell1/cif", "trainng.steps=3")
    assert "trainng.steps=3" in error.where
    assert "training" in error.remedy


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("training: {steps: many}", "training.steps"),
        ("training: {steps: 1.5}", "training.steps"),
        ("student: {faithful: perhaps}", "student.faithful"),
        ("student: {encoder: {pool_after: 3}}", "pool_after"),
        ("augment: {speeds: [fast]}", "augment.speeds"),
        ("distill: [{tap: acoustic, teacher: b, loss: cosine, weight: heavy}]", "weight"),
    ],
)
def test_a_wrong_type_names_its_key(tmp_path: Path, text: str, key: str) -> None:
    path = write(tmp_path, f"name: x\n{text}\n")
    error = refused(path)
    assert error.where == str(path)
    assert key in error.what


@pytest.mark.parametrize("override", ["training.steps=many", "training.steps=", "student=3", "seed=[1,2]"])
def test_a_wrong_type_in_an_override(override: str) -> None:
    error = refused("aishell1/cif", override)
    assert override in error.where


def test_a_value_where_a_group_of_keys_belongs(tmp_path: Path) -> None:
    path = write(tmp_path, "name: x\nstudent: 3\n")
    error = refused(path)
    assert error.where == str(path)
    assert error.what == "student is 3"
    assert "encoder" in error.remedy


def test_an_override_needs_an_equals_sign() -> None:
    error = refused("aishell1/cif", "seed")
    assert "'seed' is not an override" in str(error)


@pytest.mark.parametrize("override", ["a: [=", "training.steps={1"])
def test_an_override_that_is_no_yaml(override: str) -> None:
    refused("aishell1/cif", override)


@pytest.mark.parametrize("text", ["name: [1, 2\n", "name: x\n\tseed: 2\n", "a: b: c\n", "name: '\n"])
def test_broken_yaml_names_the_file(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    error = refused(path)
    assert error.where == str(path)
    assert "YAML" in error.what


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n"])
def test_a_recipe_is_a_mapping(tmp_path: Path, text: str) -> None:
    refused(write(tmp_path, text))


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(bytes(range(256)))
    assert refused(path).where == str(path)


def test_a_recipe_without_a_name_has_that_of_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my").mkdir()
    path = write(tmp_path / "my", "seed: 1\n")
    assert load_recipe(str(path)).name == "mine"
    monkeypatch.chdir(tmp_path)
    for each in (path, path.relative_to(tmp_path)):
        recipe = load_recipe(str(each))
        assert (recipe.name, recipe.system) == ("my/mine", "mine")
    assert load_recipe(str(write(tmp_path, ""))).name == "mine"


def test_a_row_without_its_teacher(tmp_path: Path) -> None:
    row = "{tap: acoustic, teacher: bert, loss: contrastive}"
    assert "teacher" in str(refused(write(tmp_path, f"name: x\ndistill: [{row}]\n")))
    assert "loss" in str(refused(write(tmp_path, "name: x\ndistill: [{tap: acoustic, teacher: bert}]\n")))


@pytest.mark.parametrize("key", CHOSEN, ids=lambda key: key.name)
def test_choices_are_checked_and_listed(key: Key) -> None:
    error = refused("aishell1/cif", f"{key.name}=nonsense")
    assert f"{key.name} is 'nonsense'" in error.what
    assert key.values in error.remedy


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("teachers: {b: {kind: oracle}}", "masked_lm"),
        ("teachers: {b: {case: title}}", "lower"),
        ("teachers: {b: {}}\ndistill: [{tap: acoustic, teacher: b, loss: magic}]", "contrastive"),
        (
            "teachers: {b: {}}\ndistill: [{tap: acoustic, teacher: b, loss: cosine, average: batch}]",
            "utterance",
        ),
        ("teachers: {b: {}}\ndistill: [{tap: acoustic, teacher: b, loss: cosine, reduce: max}]", "mean"),
        ("teachers: {b: {}}\ndistill: [{tap: acoustic, teacher: c, loss: cosine}]", "distill[0].teacher"),
        ("tokenizer: {kind: bpe}", "tokenizer.size"),
        ("tokenizer: {kind: init}", "training.warm_start"),
        ("training: {init_parts: [encoder]}", "training.warm_start"),
        ("teachers: {b: {}}\ntokenizer: {kind: teacher, teacher: c}", "tokenizer.teacher"),
        ("augment: {noise: [x]}", "online"),
        ("student: {faithful: true, encoder: {positions: rotary}}", "relative"),
        ("student: {encoder: {dim: 30, heads: 4}}", "student.encoder.dim"),
        ("student: {decoder: {dim: 12, heads: 4}}", "student.decoder.dim"),
        ("student: {frontend: {layers: 3}}", "student.frontend.layers"),
        ("student: {encoder: {kernel: 4}}", "student.encoder.kernel"),
        ("student: {encoder: {kind: branchformer, cgmlp_kernel: 2}}", "student.encoder.cgmlp_kernel"),
        ("student: {encoder: {kind: e_branchformer, merge_kernel: 2}}", "student.encoder.merge_kernel"),
        ("student: {encoder: {kind: branchformer, cgmlp: 7}}", "student.encoder.cgmlp"),
        ("student: {encoder: {kind: branchformer, merge: sum}}", "average"),
        ("student: {encoder: {kind: branchformer, merge_kernel: 3}}", "of kind branchformer. Did you mean 'cgmlp_kernel'?"),
        ("student: {encoder: {kind: zipformer, layers: 6}}", "unknown key 'student.encoder.layers' of kind zipformer"),
        ("student: {encoder: {kind: mamba}}", "student.encoder.kind is 'mamba'. Choose one of conformer"),
        ("student: {encoder: {kind: zipformer, heads: [4]}}", "student.encoder.heads has 1 numbers"),
        (
            "student: {encoder: {kind: zipformer, blocks: [1], downsampling: [2], dims: [6], heads: [2], "
            "feedforward: [8], kernels: [3]}}",
            "student.encoder.dims is [6]. Choose multiples of 4",
        ),
        ("student: {encoder: {kind: zipformer, kernels: [31, 31, 16, 15, 15, 31]}}", "Choose odd numbers"),
        ("student: {encoder: {kind: zipformer, value_dim: 0}}", "student.encoder.value_dim is 0"),
        ("student: {encoder: {kind: zipformer, pool_after: [7]}}", "student.encoder.pool_after is [7]"),
        ("student: {encoder: {kind: zipformer, heads: 4}}", "student.encoder.heads is 4. Give a list of integers"),
        ("training: {eden_steps: 0}", "training.eden_steps is 0"),
        ("training: {eden_epochs: -1}", "training.eden_epochs is -1"),
        ("data: {spoken: {words: [3]}}", "data.spoken.words"),
        ("data: {spoken: {snr: [30, 15]}}", "data.spoken.snr"),
        ("data: {spoken: {sentences: 5}}", "data.spoken.voices"),
        ("student: {encoder: {dropout: 1}}", "student.encoder.dropout"),
        ("student: {decoder: {history_dropout: -0.1}}", "student.decoder.history_dropout"),
        ("teachers: {b: {kind: causal_lm}}", "topk"),
        ("teachers: {b: {topk: 0}}", "teachers.b.topk"),
        ("teachers: {b: {}}\ndistill: [{tap: tokens, teacher: b, loss: soft_label}]", "teacher b lacks topk"),
        (
            "teachers: {b: {topk: 3}}\ndistill: [{tap: acoustic, teacher: b, loss: cosine}]",
            "teacher b has topk",
        ),
        ("teachers: {b: {topk: 3}}\ndistill: [{tap: acoustic, teacher: b, loss: soft_label}]", "tap: tokens"),
        (
            "teachers: {b: {}}\ndistill: [{tap: acoustic, teacher: b, loss: contrastive, temperature: -1}]",
            "distill[0].temperature",
        ),
        ("student: {decoder: {output: plm, output_dim: 8}}", "tokenizer.kind: teacher"),
        ("student: {decoder: {output_dim: 8}}", "output_dim"),
        (
            "teachers: {b: {}}\ntokenizer: {kind: teacher, teacher: b}\nstudent: {decoder: {output: plm}}",
            "Set output_dim",
        ),
        ("student: {decoder: {layers: 2, init: x, init_layers: [1]}}", "init_layers"),
        ("student: {decoder: {kind: parallel, history_dropout: 0.1}}", "of kind parallel"),
        ("student: {decoder: {kind: parallel, init: bert}}", "unknown key 'student.decoder.init'"),
        (
            "teachers: {b: {}}\ntokenizer: {kind: teacher, teacher: b}\n"
            "student: {decoder: {kind: parallel, output: plm, output_dim: 8}}",
            "unknown key 'student.decoder.output'",
        ),
        ("student: {decoder: {kind: parallel, glancing: 1.5}}", "student.decoder.glancing"),
        ("teachers: {b: {}}\ndistill: [{tap: frames.1, teacher: b, loss: cosine}]", "Set pool: cif"),
        (
            "teachers: {b: {}}\ndistill: [{tap: acoustic, teacher: b, loss: cosine, pool: cif}]",
            "pool requires tap: frames.N",
        ),
        (
            "student: {kind: hybrid}\nteachers: {b: {}}\n"
            "distill: [{tap: frames.1, teacher: b, loss: cosine, pool: cif}]",
            "of a hybrid student",
        ),
        (
            "teachers: {b: {}}\ndistill: [{tap: frames.1, teacher: b, loss: cosine, pool: max}]",
            "distill[0].pool is 'max'",
        ),
        (
            "teachers: {b: {}}\n"
            "distill: [{tap: frames.1, teacher: b, loss: cosine, pool: attention, pool_heads: 0}]",
            "distill[0].pool_heads is 0",
        ),
        (
            "teachers: {b: {}}\n"
            "distill: [{tap: frames.1, teacher: b, loss: cosine, pool: attention, pool_heads: 7}]",
            "pool_heads",
        ),
        (
            "teachers: {b: {}}\n"
            "distill: [{tap: frames.1, teacher: b, loss: cosine, pool: cif, quantity_weight: -1}]",
            "distill[0].quantity_weight",
        ),
    ],
)
def test_fields_that_do_not_go_together(tmp_path: Path, text: str, word: str) -> None:
    assert word in str(refused(write(tmp_path, f"name: x\n{text}\n")))


def test_the_temperature_of_a_row_is_its_losss_own_unless_given(tmp_path: Path) -> None:
    rows = "teachers: {a: {}, b: {topk: 3}}\ndistill:\n  - {tap: acoustic, teacher: a, loss: contrastive}\n"
    rows += "  - {tap: tokens, teacher: b, loss: soft_label}\n"
    path = write(tmp_path, f"name: x\n{rows}")
    assert [row.temperature for row in load_recipe(str(path)).distill] == [0.02, 1.0]
    given = load_recipe(str(path), ["distill.1.temperature=3"])
    assert [row.temperature for row in given.distill] == [0.02, 3.0]
    assert recipe_to_dict(given)["distill"][0]["temperature"] == 0.02


def test_saved_values_that_are_not_a_recipe() -> None:
    values = recipe_to_dict(load_recipe("aishell1/cif"))
    with pytest.raises(UserError, match=r"old\.json.*unknown key 'colour'"):
        recipe_from_dict({**values, "colour": "blue"}, "old.json")
    with pytest.raises(UserError, match=r"old\.json.*seed"):
        recipe_from_dict({**values, "seed": "first"}, "old.json")


def test_describe_says_what_is_missing() -> None:
    with pytest.raises(UserError, match=r"tokenizer\.size"):
        describe(load_recipe("aishell1/cif", ["tokenizer.size=null"]))
    with pytest.raises(UserError, match=r"teachers\.bert\.dim"):
        describe(load_recipe("aishell1/hkd", ["teachers.bert.dim=null"]))


def test_describe_tells_rows_and_rates() -> None:
    lines = "\n".join(describe(load_recipe("aishell1/hkd")).lines)
    assert "every 80 ms" in lines
    assert "4,234" in lines
    assert lines.count("row ") == 2
    *_, row = describe(load_recipe("speechocean762/cif +family/ctc +distill/pooled_attention")).lines
    assert row.startswith("row        frames.6 pooled by attention <- bert (")


def test_an_override_of_nothing_is_the_empty_text() -> None:
    assert load_recipe("aishell1/hkd", ["training.warm_start="]).training.warm_start == ""


def test_what_is_not_default_is_reported_and_no_more() -> None:
    student = CifStudentConfig()
    assert differing(student) == {}
    student.decoder.layers, student.ctc_weight = 7, 0.1
    assert differing(student) == {"decoder": {"layers": 7}, "ctc_weight": 0.1}
