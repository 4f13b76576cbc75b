"""What tests of several rooms share: a spoken language of tones, a recipe that learns it, and tiny teachers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from lhotse import CutSet

    from retort.config.schema import Recipe
    from retort.decoding.recogniser import Recogniser
    from retort.training.run import Outcome

os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**30))  # else a verb would replace pytest by itself
os.environ.setdefault(
    "MKL_CBWR", "AUTO,STRICT"
)  # as a verb sets it: else a training does not quite repeat another
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# A loaded machine must not fail a test, nor chance: RETORT_RANDOM_TESTS=1 looks for new examples.
settings.register_profile("retort", deadline=None, derandomize="RETORT_RANDOM_TESTS" not in os.environ)
settings.load_profile("retort")

LETTERS = "abcdefgh"
LETTER_SECONDS = 0.16

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [
    *["hello", "world", "un", "##fair", "games", "py", "##thon", "it", "'", "s", "Hello", "a", ",", "!"],
    *["我", "爱", "编", "程"],
]
POSITIONS = 12
"""Of a tiny BERT: what is longer is cut off."""

RECIPE = """
name: {name}
data: {{train: [{corpus}/train], validation: [{corpus}/validation], test: [{corpus}/test]}}
normaliser: {{case: lower}}
features: {{bins: 40}}
augment: {{frequency_masks: 0, time_masks: 0}}
batches: {{seconds: 12, buckets: 2}}
student:
  frontend: {{channels: 8, layers: 2}}
  encoder: {{layers: 1, dim: 32, heads: 2, feedforward: 64, kernel: 5, positions: rotary, dropout: 0.1,
             attention_dropout: 0.0, pool_after: []}}
  cif: {{dropout: 0.1}}
  decoder: {{layers: 1, dim: 32, heads: 2, feedforward: 64, dropout: 0.1, embedding_dropout: 0.1}}
training: {{steps: 12, peak_lr: 3.0e-3, warmup_steps: 4, precision: fp32, device: cpu, evaluate_steps: 6,
            log_steps: 2, checkpoints: 2}}
"""

DISTILLED = """
teachers: {{bert: {{model: {bert}, layers: [1], case: lower}}}}
distill:
  - {{tap: linguistic, teacher: bert, loss: regression, weight: 0.01}}
  - {{tap: acoustic, teacher: bert, loss: contrastive, temperature: 0.1}}
"""

NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]

Say = Callable[..., np.ndarray]
MakeCorpus = Callable[..., Path]
WriteRecipe = Callable[..., Path]
MakeBert = Callable[..., Path]


def say(text: str, seed: int = 0, rate: int = 16000) -> np.ndarray:
    """`text` as float32 samples: every letter is a tone of its own, a space is a pause, noise under all."""
    draw = np.random.default_rng([seed, *text.encode()])
    parts = []
    for character in text:
        seconds = LETTER_SECONDS * draw.uniform(0.9, 1.1)
        times = np.arange(int(seconds * rate)) / rate
        tone = 220.0 * 1.35 ** (LETTERS.index(character.lower()) if character != " " else 0)
        parts.append(np.sin(2 * np.pi * tone * times) * np.hanning(len(times)) * (character != " ") * 0.3)
    wave = np.concatenate(parts) if parts else np.zeros(0)
    return (wave + 1e-3 * draw.standard_normal(len(wave))).astype(np.float32)


def make_corpus(folder: Path, count: int, seed: int = 0, speakers: int = 3, prefix: str = "") -> Path:
    """A Kaldi folder of `count` utterances of two or three words of two or three letters."""
    import soundfile

    draw = np.random.default_rng(seed)
    (folder / "wav").mkdir(parents=True)
    tables: dict[str, list[str]] = {"text": [], "wav.scp": [], "utt2spk": []}
    for index in range(count):
        words = ["".join(draw.choice(list(LETTERS), draw.integers(2, 4))) for _ in range(draw.integers(2, 4))]
        name, text = f"{prefix or folder.name}-{index:03d}", " ".join(words)
        soundfile.write(folder / "wav" / f"{name}.wav", say(text, seed + index), 16000, subtype="FLOAT")
        tables["text"].append(f"{name} {text.upper()}")
        tables["wav.scp"].append(f"{name} wav/{name}.wav")
        tables["utt2spk"].append(f"{name} speaker-{index % speakers}")
    for name, lines in tables.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session", name="say")
def _say() -> Say:
    return say


@pytest.fixture(scope="session", name="make_corpus")
def _make_corpus() -> MakeCorpus:
    """`make_corpus(folder, count, seed=0, speakers=3, prefix="")`: a Kaldi folder in the language of tones."""
    return make_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the Kaldi folders `train` (24 utterances), `validation` and `test` (6 each); read only."""
    root = tmp_path_factory.mktemp("corpus")
    for seed, (split, count) in enumerate({"train": 24, "validation": 6, "test": 6}.items()):
        make_corpus(root / split, count, 100 * seed)
    return root


@pytest.fixture(scope="session")
def recipe_text(corpus: Path) -> Callable[[str], str]:
    """`recipe_text(name)`: YAML of a recipe that trains on `corpus` in a second."""
    return lambda name: RECIPE.format(name=name, corpus=corpus)


@pytest.fixture
def write_recipe(recipe_text: Callable[[str], str], tmp_path: Path) -> WriteRecipe:
    """`write_recipe(name="tiny", extra="")`: that as a file in `tmp_path`, with `extra` at its end."""

    def write(name: str = "tiny", extra: str = "") -> Path:
        path = tmp_path / f"{name}.yaml"
        path.write_text(recipe_text(name) + extra)
        return path

    return write


@pytest.fixture
def read_recipe(write_recipe: WriteRecipe) -> Callable[..., object]:
    """`read_recipe(*overrides, extra="")`: the same as a checked `Recipe`."""
    from retort.config.loading import load_recipe

    def read(*overrides: str, extra: str = "", name: str = "tiny") -> object:
        return load_recipe(str(write_recipe(name, extra)), overrides)

    return read


@pytest.fixture(scope="session")
def make_bert(tmp_path_factory: pytest.TempPathFactory) -> MakeBert:
    """`make_bert(lower=True, vocabulary=None, half=False)`: a folder with a BERT of random weights."""

    def make(lower: bool = True, vocabulary: Sequence[str] | None = None, half: bool = False) -> Path:
        import torch
        from transformers import BertConfig, BertModel, BertTokenizerFast

        folder = tmp_path_factory.mktemp("bert")
        words = list(vocabulary or SPECIAL + WORDS)
        (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
        BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=lower).save_pretrained(folder)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = BertModel(
                BertConfig(
                    vocab_size=len(words),
                    hidden_size=16,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    intermediate_size=32,
                    max_position_embeddings=POSITIONS,
                    initializer_range=0.5,
                )
            )
        (model.half() if half else model).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def uncased(make_bert: MakeBert) -> Path:
    return make_bert()


@pytest.fixture(scope="session")
def cased(make_bert: MakeBert) -> Path:
    return make_bert(lower=False)


@pytest.fixture(scope="session")
def tone_bert(make_bert: MakeBert) -> Path:
    """A tiny BERT whose pieces are the letters of the language of tones."""
    return make_bert(vocabulary=[*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS)])


@pytest.fixture(scope="session")
def tone_masked(tone_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pieces with their case, under a masked language model of random weights."""
    from transformers import BertConfig, BertForMaskedLM

    return _with_head(
        BertForMaskedLM, BertConfig, tone_bert, tmp_path_factory.mktemp("masked"), intermediate_size=32
    )


@pytest.fixture(scope="session")
def tone_gpt(tone_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same under a causal one."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return _with_head(GPT2LMHeadModel, GPT2Config, tone_bert, tmp_path_factory.mktemp("gpt"))


def _with_head(model: Any, config: Any, pieces: Path, folder: Path, **width: int) -> Path:
    import torch
    from transformers import BertTokenizerFast

    tokenizer = BertTokenizerFast(str(pieces / "vocab.txt"), do_lower_case=False)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.5}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = model(config(vocab_size=len(tokenizer), max_position_embeddings=40, **width, **sizes))
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def counting() -> Callable[[int, int], list[str]]:
    """`counting(count, seed)`: sentences that count up, round and round: one word tells all the others."""

    def sentences(count: int, seed: int) -> list[str]:
        draw = np.random.default_rng(seed)
        starts, lengths = draw.integers(0, 8, count), draw.integers(4, 10, count)
        return [" ".join(NUMBERS[(s + i) % 8] for i in range(n)) for s, n in zip(starts, lengths)]

    return sentences


@pytest.fixture(scope="session")
def finished(recipe_text: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A completed run of the recipe `tiny`, in an otherwise empty folder except for the cache; read only."""
    from retort.config.loading import load_recipe
    from retort.training.run import train

    root = tmp_path_factory.mktemp("finished")
    (root / "tiny.yaml").write_text(recipe_text("tiny"))
    recipe = load_recipe(str(root / "tiny.yaml"))
    return train(recipe, root / "exp", lambda *_: None, lambda *_: None)


@pytest.fixture
def finished_root(finished: Outcome, tmp_path: Path) -> Path:
    """A copy of everything that this run wrote, which a test may change."""
    return shutil.copytree(finished.folder.parent, tmp_path / "exp")


@pytest.fixture(scope="session")
def cuts(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> CutSet:
    """Training cuts with their features, read only."""
    from retort.audio.fbank import FbankConfig
    from retort.corpora.features import store_features
    from retort.corpora.open_cuts import open_cuts

    opened = open_cuts(corpus / "train").cuts
    return store_features(opened, tmp_path_factory.mktemp("features"), FbankConfig(bins=40))[0]


@pytest.fixture(scope="module")
def manifest(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training cuts with their features; the first and the sixth have the same text."""
    from lhotse import CutSet

    from retort.audio.fbank import FbankConfig
    from retort.corpora.features import store_features
    from retort.corpora.open_cuts import open_cuts

    folder = tmp_path_factory.mktemp("features")
    cuts = list(store_features(open_cuts(corpus / "train").cuts, folder, FbankConfig(bins=40))[0])
    cuts[5].supervisions[0].text = cuts[0].supervisions[0].text
    CutSet.from_cuts(cuts).to_file(folder / "train.jsonl.gz")
    return folder / "train.jsonl.gz"


@pytest.fixture(scope="session")
def experiments(
    recipe_text: Callable[[str], str], tone_bert: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with two trained and scored experiments: `taught` by a tiny BERT, and `plain`; read only."""
    from retort.config.loading import load_recipe
    from retort.evaluation.evaluate import evaluate
    from retort.training.run import train

    root = tmp_path_factory.mktemp("experiments")
    for name, extra in (("taught", DISTILLED.format(bert=tone_bert)), ("plain", "")):
        (root / f"{name}.yaml").write_text(recipe_text(name) + extra)
        recipe = load_recipe(
            str(root / f"{name}.yaml"), ["training.steps=120", "training.evaluate_steps=120"]
        )
        outcome = train(recipe, root, lambda *_: None, lambda *_: None)
        evaluate(outcome.recogniser, recipe.data.test[0], outcome.folder, lambda *_: None)
    return root


@pytest.fixture
def copies(experiments: Path, tmp_path: Path) -> Path:
    """A copy of these experiments, which a test may change."""
    return shutil.copytree(experiments, tmp_path / "copies")


@pytest.fixture
def recogniser(read_recipe: Callable[..., Recipe]) -> Recogniser:
    """An untrained model of the recipe of the tones."""
    import torch

    from retort.decoding.recogniser import Recogniser
    from retort.students.factory import build_student
    from retort.text.tokenizers import CharacterTokenizer

    recipe = read_recipe()
    torch.manual_seed(3)
    tokenizer = CharacterTokenizer(list("▁abcdefgh"))
    student = build_student(recipe.student, tokenizer.size, recipe.features.bins)
    return Recogniser(student, tokenizer, recipe.features, recipe.normaliser)
