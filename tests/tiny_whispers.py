"""A tiny Whisper with random weights: a folder that transformers opens, as a hub or `retort fetch` gives one."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

from retort.audio.whisper import WhisperFeatureConfig
from retort.config.schema import NormaliserConfig, TokenizerConfig
from retort.decoding.recogniser import Recogniser
from retort.nn.pretrained import PretrainedEncoderConfig
from retort.pretrained.whisper import whisper_architecture, whisper_tokenizer
from retort.students.factory import build_student
from retort.students.whisper import WhisperStudent, WhisperStudentConfig
from retort.training.init import start_from_pretrained

BASE = ("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|zh|>", "<|translate|>", "<|transcribe|>", "<|startofprev|>")
TIMESTAMPS = 20
POSITIONS = 40
"""Of the decoder; those of the encoder are 60 frames, 1.2 seconds, where nothing else is spoken."""


def tiny_tokenizer() -> Tokenizer:
    """Bytes, a few merges, and special tokens under Whisper's names."""
    vocabulary = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("Ġ", "a"), ("h", "e"), ("Ġ", "t"), ("Ġt", "he"), ("e", "r"), ("Ġ", "s"), ("l", "l"), ("o", "w")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = [*BASE, "<|notimestamps|>", *(f"<|{step / 50:.2f}|>" for step in range(TIMESTAMPS))]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    return tokenizer


def tiny_whisper_folder(folder: Path, *, multilingual: bool = True, seed: int = 0, frames: int = 60) -> Path:
    """The folder, made; the encoder reads up to `frames` frames of 20 ms."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer()
    ids = {name: tokenizer.token_to_id(name) for name in (*BASE, "<|notimestamps|>")}
    end = ids["<|endoftext|>"]
    torch.manual_seed(seed)
    shared = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    shared["decoder_start_token_id"] = ids["<|startoftranscript|>"]
    config = WhisperConfig(
        num_mel_bins=80, d_model=16, encoder_layers=3, encoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=32, max_source_positions=frames,
        max_target_positions=POSITIONS, vocab_size=tokenizer.get_vocab_size(), **shared,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config).eval()
    for parameter in model.parameters():  # biases and norms begin at 0 and 1, which would hide mistakes
        parameter.data += 0.3 * torch.randn_like(parameter)
    model.model.encoder.embed_positions.weight.data = torch.randn(frames, 16)
    languages = {"<|en|>": ids["<|en|>"], "<|zh|>": ids["<|zh|>"]}
    tasks = {"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]}
    model.generation_config = GenerationConfig(
        **shared,
        suppress_tokens=[3, 4, *range(end + 1, tokenizer.get_vocab_size())],
        begin_suppress_tokens=[tokenizer.token_to_id("Ġ"), end],
        is_multilingual=multilingual,
        max_length=POSITIONS,
        no_timestamps_token_id=ids["<|notimestamps|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        alignment_heads=[[0, 1], [1, 0]],
        return_timestamps=False,
        **({"lang_to_id": languages, "task_to_id": tasks} if multilingual else {}),
    )
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    settings = {"tokenizer_class": "WhisperTokenizer", "clean_up_tokenization_spaces": False, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def tiny_whisper_recogniser(
    folder: Path, *, size: int | None = None, ctc_weight: float = 0.0, texts: tuple[str, ...] = ()
) -> Recogniser:
    """The folder's model as a student, untouched."""
    tokenizer = whisper_tokenizer(str(folder), TokenizerConfig(kind="whisper", size=size), texts)
    architecture = whisper_architecture(str(folder))
    config = WhisperStudentConfig(
        encoder=PretrainedEncoderConfig(
            architecture=architecture, layers=3, dim=16, dropout=0.0, pool_after=[]
        ),
        label_smoothing=0.0,
        ctc_weight=ctc_weight,
    )
    torch.manual_seed(1)
    student = build_student(config, tokenizer.size, 80)
    assert isinstance(student, WhisperStudent)
    assert start_from_pretrained(student, str(folder), tokenizer) > 80
    features = WhisperFeatureConfig()
    return Recogniser(student, tokenizer, features, NormaliserConfig(case="lower"))
