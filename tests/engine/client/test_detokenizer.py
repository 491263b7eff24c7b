"""Incremental detokenising: exact, never half a character, and the same work for every token."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from motet.api.generating.logprobs import echo_offsets
from motet.core.errors import StartupError
from motet.engine.client.detokenizer import Detokenizer
from motet.engine.client.token_bytes import read_decoding
from motet.engine.client.tokenizer import ModelTokenizer

SAMPLES = [
    "😀👩‍👩‍👧‍👦🏳️‍🌈",
    "漢字かな交じり文",
    "e\u0301a\u0308o\u0302",
    "नमस्ते दुनिया क्षत्रिय",
    "שלום",
    " lead",
    "  two",
    "tab\t\n",
]
TEXTS = st.lists(st.sampled_from(SAMPLES) | st.text(max_size=12), max_size=6).map("".join)


@lru_cache
def reference(directory: Path) -> Tokenizer:
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


def deltas(text: ModelTokenizer, ids: list[int], prompt: list[int] | None = None) -> list[str]:
    detokenizer = Detokenizer(text.pieces, prompt or [])
    return [*map(detokenizer.push, ids), detokenizer.flush()]


@settings(max_examples=80, deadline=None)
@given(text=TEXTS)
def test_byte_level_text_comes_back_whole(smollm2: ModelTokenizer, model_directory: Path, text: str) -> None:
    ids = smollm2.encode(text, add_special_tokens=False)
    parts = deltas(smollm2, ids)
    assert "".join(parts) == reference(model_directory).decode(ids)
    if b"".join(map(smollm2.token_bytes, ids)) == text.encode():  # a few rare bytes have no token
        assert "".join(parts) == text
        assert "\ufffd" in text or not any("\ufffd" in part for part in parts)


def test_no_character_is_ever_shown_in_halves(smollm2: ModelTokenizer) -> None:
    text = "".join(SAMPLES)
    parts = deltas(smollm2, smollm2.encode(text, add_special_tokens=False))
    assert "".join(parts) == text
    assert parts.count("") > 10, "the test needs characters of several tokens"


@settings(max_examples=80, deadline=None)
@given(ids=st.lists(st.integers(0, 49_151), max_size=40))
def test_any_ids_decode_like_the_tokenizer(smollm2: ModelTokenizer, model_directory: Path, ids: list[int]) -> None:
    """Invalid UTF-8 and special tokens too: the library's decode of the whole is the reference."""
    tokenizer = reference(model_directory)
    assert "".join(deltas(smollm2, ids)) == tokenizer.decode(ids, skip_special_tokens=True)
    assert smollm2.decode(ids, skip_special_tokens=False) == tokenizer.decode(ids, skip_special_tokens=False)


@settings(max_examples=80, deadline=None)
@given(text=TEXTS)
def test_byte_fallback_decodes_like_the_tokenizer(byte_fallback: ModelTokenizer, text: str) -> None:
    ids = byte_fallback.encode(text, add_special_tokens=False)
    parts = deltas(byte_fallback, ids)
    assert "".join(parts) == byte_fallback._tokenizer.decode(ids)
    assert "\ufffd" in text or not any("\ufffd" in part for part in parts)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_metaspace_decodes_like_the_tokenizer(metaspace: ModelTokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, metaspace.vocab_size - 1), max_size=12))
    assert "".join(deltas(metaspace, ids)) == metaspace._tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["byte_fallback", "metaspace", "smollm2"])
def test_a_continuation_keeps_its_leading_space(kind: str, request: pytest.FixtureRequest) -> None:
    text: ModelTokenizer = request.getfixturevalue(kind)
    ids = text.encode("Hello world there", add_special_tokens=False)
    for cut in range(len(ids) + 1):
        prompt, answer = ids[:cut], ids[cut:]
        assert text.decode(prompt) + "".join(deltas(text, answer, prompt)) == "Hello world there"


def test_special_tokens_before_the_text_do_not_count_as_text(byte_fallback: ModelTokenizer) -> None:
    ids = byte_fallback.encode("Hello", add_special_tokens=False)
    assert "".join(deltas(byte_fallback, ids, prompt=[1])) == "Hello"
    assert byte_fallback.decode([1, *ids], skip_special_tokens=False) == "<s> Hello"
    assert byte_fallback.decode([1, *ids]) == "Hello"


def test_a_character_that_the_prompt_began_is_finished(smollm2: ModelTokenizer) -> None:
    ids = smollm2.encode("🦜", add_special_tokens=False)
    assert len(ids) > 1, "the test needs a character of several tokens"
    assert "".join(deltas(smollm2, ids[1:], prompt=ids[:1])) == "🦜"


def test_an_unfinished_character_is_flushed_as_one_replacement(smollm2: ModelTokenizer) -> None:
    ids = smollm2.encode("ok🦜", add_special_tokens=False)[:-1]
    *parts, last = deltas(smollm2, ids)
    assert ("".join(parts), last) == ("ok", "\ufffd")


def test_special_and_unknown_ids_have_no_text(smollm2: ModelTokenizer) -> None:
    assert deltas(smollm2, [*smollm2.eos_token_ids, 10**6, -1]) == ["", "", "", ""]


def test_endless_invalid_bytes_cost_the_same_for_every_token(smollm2: ModelTokenizer) -> None:
    invalid = next(i for i in range(smollm2.vocab_size) if smollm2.token_bytes(i) == b"\xa9")
    started = time.perf_counter()
    parts = deltas(smollm2, [invalid] * 50_000)
    assert "".join(parts) == "\ufffd" * 50_000
    assert time.perf_counter() - started < 2  # the quadratic way needs minutes


def test_token_bytes_add_up_to_the_text(smollm2: ModelTokenizer, byte_fallback: ModelTokenizer) -> None:
    text = "naïve 中 😀"
    for model, whole in ((smollm2, text), (byte_fallback, f" {text}")):
        ids = model.encode(text, add_special_tokens=False)
        assert b"".join(map(model.token_bytes, ids)) == whole.encode()
    assert smollm2.token_bytes(smollm2.eos_token_ids[0]) == b"<|im_end|>"
    assert smollm2.token_bytes(smollm2.vocab_size) == b""


def test_added_tokens_outside_the_byte_alphabet_are_their_own_text(save: object) -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(["<think> 思", "   "])
    text = save(tokenizer)  # type: ignore[operator]
    assert text.decode([0, 2, 3, 1]) == tokenizer.decode([0, 2, 3, 1]) == "a<think> 思   b"


@pytest.mark.parametrize("decoder", [None, {"type": "WordPiece"}, {"type": "Sequence", "decoders": [{"type": "CTC"}]}])
def test_a_decoder_that_we_do_not_know_is_refused(decoder: dict[str, object] | None) -> None:
    with pytest.raises(StartupError, match=r"tokenizer\.json"):
        read_decoding(decoder)


@pytest.mark.parametrize("family", ["smollm2", "byte_fallback", "metaspace"])
def test_the_places_of_a_prompt_s_tokens_are_in_its_text(family: str, request: pytest.FixtureRequest) -> None:
    """Completions report them as `text_offset`."""
    text: ModelTokenizer = request.getfixturevalue(family)
    for words in ("Hello world", " Hello", "Hello é🦜!"):
        ids = text.encode(words, add_special_tokens=True)
        offsets = echo_offsets(text, ids, None)
        if text.special_id("<unk>") not in ids:
            assert echo_offsets(text, ids, words) == offsets
        for place, start in enumerate(offsets):
            assert len(text.decode(ids[:place], continued=True)) == start


def test_places_are_in_the_text_as_it_was_written(save: Callable[[Tokenizer], ModelTokenizer]) -> None:
    """Some tokenizers put an accent and its letter together before they begin."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    text, words = save(tokenizer), "e\u0301x y 🦜!"
    ids = text.encode(words, add_special_tokens=True)
    assert [words[place] for place in echo_offsets(text, ids, words)] == [*"eex y ", *"🦜🦜🦜🦜!"]
