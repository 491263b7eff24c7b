"""Token events as OpenAI's two shapes of logprobs."""

from __future__ import annotations

import math

import pytest
from support.scripted_api import write_model

from motet.api.generating.logprobs import CompletionLogprobsWriter, Echo, chat_logprobs, packed
from motet.api.schema.openai_objects import ENCODER, ChatLogprobs
from motet.core.messages import TokenEvent
from motet.engine.client.tokenizer import ModelTokenizer


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> ModelTokenizer:
    return ModelTokenizer(write_model(tmp_path_factory.mktemp("model")))


def events(text: ModelTokenizer, said: str) -> list[TokenEvent]:
    ids = text.encode(said, add_special_tokens=False)
    other = text.encode("z", add_special_tokens=False)[0]
    return [TokenEvent("s", token, -0.25 * n, ((other, -0.1),)) for n, token in enumerate(ids)]


def test_chat_reports_text_bytes_and_alternatives(text: ModelTokenizer) -> None:
    content = chat_logprobs(text, events(text, "ab")).content
    assert [entry.token for entry in content] == ["a", "b"]
    assert [entry.bytes for entry in content] == [[97], [98]]
    assert [entry.logprob for entry in content] == [0.0, -0.25]
    assert [(top.token, top.logprob, top.bytes) for top in content[0].top_logprobs] == [("z", -0.1, [122])]


def test_the_bytes_join_to_the_text_even_where_tokens_are_no_characters(text: ModelTokenizer) -> None:
    content = chat_logprobs(text, events(text, "é🙂")).content
    assert bytes(byte for entry in content for byte in entry.bytes).decode() == "é🙂"
    assert content[0].token == "\\xc3"


def test_the_token_that_ends_a_text_is_not_reported(text: ModelTokenizer) -> None:
    end = TokenEvent("s", text.eos_token_ids[0], -1.0, (), "stop", text.eos_token_ids[0])
    assert [entry.token for entry in chat_logprobs(text, [*events(text, "a"), end]).content] == ["a"]


def test_minus_infinity_is_a_number_in_json(text: ModelTokenizer) -> None:
    event = TokenEvent("s", 5, -math.inf, ((6, -math.inf),))
    [entry] = chat_logprobs(text, [event]).content
    assert entry.logprob == entry.top_logprobs[0].logprob == -9999.0


def test_completions_have_parallel_lists_and_go_on_between_chunks(text: ModelTokenizer) -> None:
    writer = CompletionLogprobsWriter(text, (), Echo())
    said = events(text, "aé!")
    first, second = writer.write(said[:2]), writer.write(said[2:])
    assert first.tokens + second.tokens == ["a", "bytes:\\xc3", "bytes:\\xa9", "!"]
    assert first.text_offset + second.text_offset == [0, 1, 1, 2]
    assert first.token_logprobs == [0.0, -0.25]
    assert second.top_logprobs[-1] == {"z": -0.1, "!": -0.75}


def test_what_is_packed_reads_the_same(text: ModelTokenizer) -> None:
    content = chat_logprobs(text, events(text, "aé!")).content
    assert ENCODER.encode(ChatLogprobs([packed(entry) for entry in content])) == ENCODER.encode(ChatLogprobs(content))
