"""Adapters that rename or add tokens: the same prompts as transformers makes with the adapter's own tokenizer."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.adapter_tokenizers import write_config, write_renamed
from support.scripted_api import write_model
from transformers import PreTrainedTokenizerFast

from motet.core.adapter_tokens import AdapterTokens, AddedToken
from motet.core.errors import AdapterRefused
from motet.engine.adapters.added_tokens import FILES, BaseTokens, read_added_tokens
from motet.engine.client.tokenizer import ModelTokenizer

VOCAB = 49_152
USERS = {5: "<|user|>", 6: "<|assistant|>"}
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def base(model_directory: Path) -> BaseTokens:
    return BaseTokens(model_directory)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A base whose two added tokens, 256 and 257, lie beyond the vocabulary of its model."""
    (tmp_path / "base").mkdir()
    return write_model(tmp_path / "base")


def refusal(directory: Path, base: Path, vocab_size: int = 300) -> str:
    with pytest.raises(AdapterRefused) as caught:
        read_added_tokens(directory, BaseTokens(base), vocab_size)
    return caught.value.message


def test_prompts_are_those_of_transformers(
    tmp_path: Path, model_directory: Path, base: BaseTokens, smollm2: ModelTokenizer
) -> None:
    directory = write_renamed(model_directory, tmp_path / "adapter", USERS)
    theirs = PreTrainedTokenizerFast.from_pretrained(directory)
    messages = [{"role": "user", "content": "hi there"}]
    prompt = theirs.apply_chat_template(messages, chat_template=TEMPLATE, add_generation_prompt=True, tokenize=False)
    ours = smollm2.for_adapter(read_added_tokens(directory, base, VOCAB))
    assert ours.encode(prompt, add_special_tokens=False) == [5, 6004, 665, 6]
    for text in (prompt, "<file_sep> is <|user|>s <|im_end|>", "a<|assistant|>\n b", "no token é 🙂", ""):
        ids = ours.encode(text, add_special_tokens=False)
        assert ids == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.spans("x<|user|>y", add_special_tokens=False)[1] == (5, 1, 9)
    assert (ours.special_id("<|user|>"), ours.special_id("<file_sep>"), ours.special_id("<|im_end|>")) == (5, None, 2)
    assert smollm2.encode("<file_sep>", add_special_tokens=False) == [5]
    assert ours.fingerprint != smollm2.fingerprint


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(st.integers(256, 262), st.sampled_from(["<a>", "<b>", "[C]", "<|im_end|>"]), max_size=4),
    st.text(st.sampled_from("x <>[]abC|im_end"), max_size=12),
)
def test_any_renaming_beyond_the_vocabulary(tmp_path: Path, tiny: Path, names: dict[int, str], text: str) -> None:
    ids = [256, 257, *sorted(names.keys() - {256, 257})]
    names = {place: names[id] for place, id in enumerate(ids, start=256) if id in names}  # without gaps
    if len({**dict(zip((256, 257), ("<|im_start|>", "<|im_end|>"), strict=True)), **names}) != len(
        {*({256: "<|im_start|>", 257: "<|im_end|>"} | names).values()}
    ):
        return  # a name twice is refused, below
    directory = write_renamed(tiny, tmp_path / "adapter", names)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"))
    ours = ModelTokenizer(tiny).for_adapter(read_added_tokens(directory, BaseTokens(tiny), 300))
    text += "".join(names.values()) + text
    ids = ours.encode(text, add_special_tokens=False)
    assert ids == theirs.encode(text, add_special_tokens=False)
    assert ours.decode(ids, skip_special_tokens=False) == text


def test_a_token_beyond_the_models_vocabulary_is_refused(
    tmp_path: Path, model_directory: Path, base: BaseTokens
) -> None:
    directory = write_renamed(model_directory, tmp_path / "adapter", {VOCAB: "<|tool|>"})
    assert "'<|tool|>' with id 49152" in refusal(directory, model_directory, VOCAB)
    assert read_added_tokens(directory, base, VOCAB + 1).added[0].content == "<|tool|>"
    listed = write_config(model_directory, tmp_path / "b", added_tokens_decoder={str(VOCAB): {"content": "<x>"}})
    assert "'<x>' with id 49152" in refusal(listed, model_directory, VOCAB)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "added_tokens.json").write_text(json.dumps({"<y>": VOCAB}))
    assert "'<y>' with id 49152" in refusal(tmp_path / "c", model_directory, VOCAB)


def test_padding_beyond_the_vocabulary_does_no_harm(tmp_path: Path, tiny: Path) -> None:
    directory = write_renamed(tiny, tmp_path / "adapter", {258: "[PAD]"}, {"pad_token": "[PAD]"})
    assert read_added_tokens(directory, BaseTokens(tiny), 258) == AdapterTokens()


def test_the_bases_own_tokens_are_no_difference(tmp_path: Path, tiny: Path) -> None:
    base = BaseTokens(tiny)
    (tmp_path / "none").mkdir()
    assert read_added_tokens(tmp_path / "none", base, 258) == AdapterTokens()
    same = write_renamed(tiny, tmp_path / "same", {})
    assert read_added_tokens(same, base, 258) == AdapterTokens()
    file = json.loads((same / "tokenizer.json").read_bytes())
    file["added_tokens"] = file["added_tokens"][1:]  # fewer
    (same / "tokenizer.json").write_text(json.dumps(file))
    assert read_added_tokens(same, base, 258) == AdapterTokens()
    text = ModelTokenizer(tiny)
    assert text.for_adapter(AdapterTokens()) is text


def test_names_without_a_tokenizer_file(tmp_path: Path, tiny: Path) -> None:
    directory = write_config(
        tiny, tmp_path / "a", added_tokens_decoder={"256": {"content": "<|user|>", "special": True}}
    )
    tokens = read_added_tokens(directory, BaseTokens(tiny), 258)
    assert tokens == AdapterTokens((AddedToken(256, "<|user|>", special=True),))
    assert ModelTokenizer(tiny).for_adapter(tokens).encode("a<|user|>", add_special_tokens=False)[1:] == [256]


def test_special_tokens_of_its_own(tmp_path: Path, tiny: Path) -> None:
    base, text = BaseTokens(tiny), ModelTokenizer(tiny)
    ended = write_config(tiny, tmp_path / "a", eos_token={"content": "<|im_start|>"}, bos_token=None)
    mine = text.for_adapter(read_added_tokens(ended, base, 258))
    assert mine.special_tokens == {"eos_token": "<|im_start|>"}
    assert mine.eos_token_ids == (257, 256)
    renamed = write_renamed(tiny, tmp_path / "b", {256: "<|end|>"}, {"eos_token": "<|end|>"})
    assert text.for_adapter(read_added_tokens(renamed, base, 258)).eos_token_ids == (257, 256)
    unknown = write_config(tiny, tmp_path / "c", eos_token="</s>")
    assert read_added_tokens(unknown, base, 258) == AdapterTokens()


def test_what_cannot_be_used_is_named(tmp_path: Path, tiny: Path) -> None:
    other = write_renamed(tiny, tmp_path / "a", {})
    file = json.loads((other / "tokenizer.json").read_bytes())
    [letter] = [name for name, id in file["model"]["vocab"].items() if id == 70]
    file["model"]["vocab"]["other"] = file["model"]["vocab"].pop(letter)
    (other / "tokenizer.json").write_text(json.dumps(file))
    assert f"token 70 is 'other', and the base model's is {letter!r}" in refusal(other, tiny)
    twice = write_renamed(tiny, tmp_path / "b", {258: "<|im_end|>"})
    assert "'<|im_end|>' as token 258, and as token 257" in refusal(twice, tiny)
    many = write_renamed(tiny, tmp_path / "c", {256 + n: f"<{n}>" for n in range(1025)})
    assert "1025 tokens" in refusal(many, tiny, 5000)
    empty = write_renamed(tiny, tmp_path / "d", {256: ""})
    assert "token 256 must have 1 to 256 characters" in refusal(empty, tiny)


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_not_what_they_should_be(tmp_path: Path, tiny: Path, name: str) -> None:
    directory = tmp_path / "adapter"
    directory.mkdir()
    path = directory / name
    wrong = (
        "",
        "{",
        "[1]",
        "[" * 100_000,
        *(['{"added_tokens_decoder": 5}'] if name == "tokenizer_config.json" else []),
    )
    for content in wrong:
        path.write_text(content)
        assert name in refusal(directory, tiny)
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert f"{name} has 1099511627776 bytes" in refusal(directory, tiny)
    path.unlink()
    os.mkfifo(path)
    assert f"{name} is not a regular file" in refusal(directory, tiny)
