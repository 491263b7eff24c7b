"""What ModelTokenizer reads from a model's directory."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from motet.core.errors import StartupError
from motet.engine.client.tokenizer import GenerationDefaults, ModelTokenizer


@pytest.fixture
def directory(model_directory: Path, tmp_path: Path) -> Path:
    """A copy of the default model's text files that a test may change."""
    return Path(shutil.copytree(model_directory, tmp_path / "model"))


def write(directory: Path, name: str, value: object) -> None:
    (directory / name).write_text(json.dumps(value))


def test_the_default_model(smollm2: ModelTokenizer, model_directory: Path) -> None:
    assert smollm2.vocab_size == 49_152
    special = smollm2.special_tokens
    assert (special["bos_token"], special["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    assert smollm2.special_tokens["unk_token"] == "<|endoftext|>"
    assert smollm2.eos_token_ids == (2,)
    assert smollm2.special_id("<|im_end|>") == 2
    assert smollm2.special_id("Hello") is None
    assert smollm2.fingerprint == hashlib.sha256((model_directory / "tokenizer.json").read_bytes()).hexdigest()
    assert smollm2.encode("<|im_start|>user", add_special_tokens=False) == [1, 4093]


@pytest.mark.parametrize(("stated", "expected"), [(0, (0, 2)), ([2, 0], (2, 0)), (None, (2,)), ([], (2,))])
def test_eos_is_the_generation_configs_and_the_tokenizers(
    directory: Path, stated: object, expected: tuple[int, ...]
) -> None:
    write(directory, "generation_config.json", {"eos_token_id": stated})
    assert ModelTokenizer(directory).eos_token_ids == expected


def test_eos_comes_from_config_json_where_there_is_no_generation_config(directory: Path) -> None:
    write(directory, "config.json", {"eos_token_id": 0})
    assert ModelTokenizer(directory).eos_token_ids == (0, 2)


def test_special_tokens_may_be_objects_or_in_the_older_file(directory: Path) -> None:
    write(directory, "tokenizer_config.json", {"eos_token": {"content": "<|endoftext|>"}, "pad_token": None})
    write(directory, "special_tokens_map.json", {"bos_token": "<|im_start|>"})
    text = ModelTokenizer(directory)
    assert text.special_tokens == {"eos_token": "<|endoftext|>", "bos_token": "<|im_start|>"}
    assert text.eos_token_ids == (0,)


def test_generation_defaults_count_only_with_do_sample(directory: Path) -> None:
    recommended = {"temperature": 0.6, "top_p": 0.9, "top_k": 40, "repetition_penalty": None, "max_length": 20}
    write(directory, "generation_config.json", recommended)
    assert ModelTokenizer(directory).generation == GenerationDefaults()
    write(directory, "generation_config.json", {**recommended, "do_sample": True})
    assert ModelTokenizer(directory).generation == GenerationDefaults(temperature=0.6, top_p=0.9, top_k=40)


def test_a_tokenizer_saved_with_truncation_does_not_cut_prompts(directory: Path) -> None:
    saved = json.loads((directory / "tokenizer.json").read_text())
    saved["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    write(directory, "tokenizer.json", saved)
    assert len(ModelTokenizer(directory).encode("one two three four five six", add_special_tokens=True)) == 6


def test_start_up_errors_name_the_file(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"no tokenizer\.json"):
        ModelTokenizer(tmp_path)
    for name, content in {
        "generation_config.json": '{"eos_token_id": "two"}',
        "tokenizer_config.json": "[]",
        "special_tokens_map.json": "{",
        "tokenizer.json": '{"model": 1}',
    }.items():
        (directory / name).write_text(content)
        with pytest.raises(StartupError, match=name.replace(".", r"\.")) as raised:
            ModelTokenizer(directory)
        assert raised.value.param == "model"
        if name != "tokenizer.json":
            (directory / name).unlink()
    (directory / "tokenizer.json").write_text("no json")
    with pytest.raises(StartupError, match=r"tokenizer\.json"):
        ModelTokenizer(directory)


def test_bad_generation_defaults_are_a_start_up_error(directory: Path) -> None:
    write(directory, "generation_config.json", {"do_sample": True, "top_k": "many"})
    with pytest.raises(StartupError, match=r"generation_config\.json.*top_k"):
        ModelTokenizer(directory)


def test_tokenising_in_a_thread_lets_the_others_run(smollm2: ModelTokenizer) -> None:
    text = "Hello wörld, this is a rather long text. " * 10_000
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(smollm2.encode_batch, [text], add_special_tokens=False)
        turns = 0
        while not work.done():
            time.sleep(0.001)
            turns += 1
    assert turns >= 10  # one or two, if it held the interpreter's lock
    assert work.result()[0][:3] == smollm2.encode("Hello wörld", add_special_tokens=False)[:3]


def test_what_may_fit_does_if_it_is_made_of_the_longest_tokens(smollm2: ModelTokenizer) -> None:
    longest = max(range(smollm2.vocab_size), key=lambda token: len(smollm2.token_bytes(token)))
    text = smollm2.token_bytes(longest).decode() * 4
    assert len(text.encode()) == 4 * smollm2.pieces.longest
    assert smollm2.may_fit(text, 4)
    assert not smollm2.may_fit(text + "x", 4)
    assert not smollm2.may_fit("é" * (2 * smollm2.pieces.longest + 1), 4)
