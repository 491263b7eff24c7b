"""stream_text over scripted token events: what is shown and counted, and that the engine is stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from motet.core.errors import Unavailable
from motet.core.messages import AddRequest, FinishReason, TokenEvent
from motet.core.sampling_params import SamplingParams
from motet.engine.client.text_stream import TextDelta, stream_text
from motet.engine.client.tokenizer import ModelTokenizer

EOS = 2


class Script:
    """An engine that yields these events, and notes how far it came and whether it was closed."""

    def __init__(self, events: Sequence[TokenEvent], failure: Exception | None = None, at_once: int = 1) -> None:
        self.events, self.failure, self.at_once = events, failure, at_once
        self.sent = 0
        self.closed = False

    async def generate(self, request: AddRequest) -> AsyncGenerator[tuple[TokenEvent, ...], None]:
        try:
            for first in range(0, len(self.events), self.at_once):
                batch = tuple(self.events[first : first + self.at_once])
                self.sent += len(batch)
                yield batch
            if self.failure:
                raise self.failure
        finally:
            self.closed = True


def events(ids: Sequence[int], finish: FinishReason = "length", stop_id: int | None = None) -> list[TokenEvent]:
    *early, last = ids
    return [*(TokenEvent("r", i) for i in early), TokenEvent("r", last, finish=finish, stop_id=stop_id)]


def request(**params: object) -> AddRequest:
    return AddRequest("r", (1,), SamplingParams(max_tokens=100, eos_token_ids=(EOS,), **params))  # type: ignore[arg-type]


def stream(
    engine: Script, text: ModelTokenizer, stop: Sequence[str] = (), submit: AddRequest | None = None
) -> list[TextDelta]:
    async def collect() -> list[TextDelta]:
        return [delta async for delta in stream_text(engine, text, submit or request(), stop)]

    return asyncio.run(collect())


def ids_of(text: ModelTokenizer, words: str) -> list[int]:
    return text.encode(words, add_special_tokens=False)


def shown(deltas: list[TextDelta]) -> str:
    return "".join(delta.text for delta in deltas)


def check_shape(deltas: list[TextDelta], sent: Sequence[TokenEvent]) -> None:
    """Every event once and in order; every delta has text or is the end; one end, at the end."""
    assert [event for delta in deltas for event in delta.tokens] == list(sent)
    assert all(delta.text and delta.finish_reason is None for delta in deltas[:-1])
    assert deltas[-1].finish_reason is not None


def test_eos_is_counted_and_has_no_text(smollm2: ModelTokenizer) -> None:
    engine = Script(events([*ids_of(smollm2, "Ahoy, matey!"), EOS], "stop", EOS))
    deltas = stream(engine, smollm2)
    check_shape(deltas, engine.events)
    assert shown(deltas) == "Ahoy, matey!"
    assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == ("stop", None)


def test_a_stop_token_of_the_request_has_no_text_and_is_named(smollm2: ModelTokenizer) -> None:
    *_, last = ids = ids_of(smollm2, "one two three")
    deltas = stream(Script(events(ids, "stop", last)), smollm2, submit=request(stop_token_ids=(last,)))
    assert shown(deltas) == "one two"
    assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == ("stop", last)


def test_an_eos_that_is_ignored_and_asked_for_as_a_stop_token_is_named(smollm2: ModelTokenizer) -> None:
    submit = request(stop_token_ids=(EOS,), ignore_eos=True)
    assert stream(Script(events([EOS], "stop", EOS)), smollm2, submit=submit)[-1].stop_reason == EOS


def test_special_tokens_never_leak(smollm2: ModelTokenizer) -> None:
    hello = ids_of(smollm2, "Hello")
    engine = Script(events([1, *hello, EOS, 1, *hello]))
    deltas = stream(engine, smollm2)
    check_shape(deltas, engine.events)
    assert shown(deltas) == "HelloHello"


def test_a_character_over_several_tokens_comes_whole(smollm2: ModelTokenizer) -> None:
    engine = Script(events(ids_of(smollm2, "a🦜b")))
    deltas = stream(engine, smollm2)
    check_shape(deltas, engine.events)
    assert [delta.text for delta in deltas] == ["a", "🦜", "b"]
    assert len(deltas[1].tokens) > 1


def test_an_unfinished_character_is_not_shown_at_the_end(smollm2: ModelTokenizer) -> None:
    engine = Script(events(ids_of(smollm2, "a🦜")[:-1]))
    deltas = stream(engine, smollm2)
    check_shape(deltas, engine.events)
    assert shown(deltas) == "a"


@pytest.mark.parametrize("stop", ["world", "lo wor", "or", "Hello", " wor", "!"])
def test_a_stop_string_ends_text_and_engine(smollm2: ModelTokenizer, stop: str) -> None:
    engine = Script(events(ids_of(smollm2, "Hello world! And so on, and so on.")))
    deltas = stream(engine, smollm2, [stop, "never said"])
    assert shown(deltas) == "Hello world! And".split(stop)[0]
    assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == ("stop", stop)
    check_shape(deltas, engine.events[: engine.sent])
    assert engine.closed
    assert engine.sent < len(engine.events)


@pytest.mark.parametrize(
    ("words", "stop", "cut"),
    [
        (["a", "b", "c"], "c", 1),
        (["a", "b", "c"], "bc", 2),
        (["a", "b", "c"], "abc", 3),
        ([" world", "!"], "ld!", 1),  # the first of them is in the text, too
        (["a", " ☃"], "☃", 2),  # three tokens, and the first one has the space
        (["a", "b", "c"], "never", 0),
    ],
)
def test_tokens_that_say_a_stop_string_alone_are_counted(
    smollm2: ModelTokenizer, words: list[str], stop: str, cut: int
) -> None:
    ids = [id for word in words for id in ids_of(smollm2, word)]
    for at_once in (1, 9):
        deltas = stream(Script(events(ids), at_once=at_once), smollm2, [stop])
        assert [delta.cut for delta in deltas] == [*[0] * (len(deltas) - 1), cut]


def test_text_that_was_held_back_comes_with_a_token(smollm2: ModelTokenizer) -> None:
    for words, tokens, cut in ((["a", "b", "cd"], 2, 1), (["ab", "cd"], 1, 0)):
        ids = [id for word in words for id in ids_of(smollm2, word)]
        [first, last] = stream(Script(events(ids)), smollm2, ["bcx", "cd"])
        assert (first.text, last.text, len(last.tokens), last.cut) == ("a", "b", tokens, cut)


def test_the_engine_stream_closes_before_the_client_reads_the_last_delta(smollm2: ModelTokenizer) -> None:
    engine = Script(events(ids_of(smollm2, "one two three")))

    async def first() -> bool:
        async with aclosing(stream_text(engine, smollm2, request(), ["one"])) as deltas:
            async for delta in deltas:
                assert delta.stop_reason == "one"
                return engine.closed
        return False

    assert asyncio.run(first())


def test_a_stop_string_in_the_last_token_beats_length(smollm2: ModelTokenizer) -> None:
    deltas = stream(Script(events(ids_of(smollm2, "one two"))), smollm2, ["two"])
    assert (shown(deltas), deltas[-1].finish_reason, deltas[-1].stop_reason) == ("one ", "stop", "two")


def test_what_was_held_back_is_released_at_the_end(smollm2: ModelTokenizer) -> None:
    for finish, stop_id, tail in (("length", None, []), ("stop", EOS, [EOS])):
        script = Script(events([*ids_of(smollm2, "one two"), *tail], finish, stop_id))  # type: ignore[arg-type]
        deltas = stream(script, smollm2, ["two three"])
        assert (shown(deltas), deltas[-1].finish_reason) == ("one two", finish)


def test_stop_strings_before_min_tokens_do_not_count(smollm2: ModelTokenizer) -> None:
    ids = ids_of(smollm2, "no no no no")
    assert len(ids) == 4
    deltas = stream(Script(events(ids)), smollm2, ["no"], request(min_tokens=3))
    assert (shown(deltas), len([e for d in deltas for e in d.tokens])) == ("no no ", 3)


def test_a_special_token_can_be_a_stop_string(smollm2: ModelTokenizer) -> None:
    engine = Script(events([*ids_of(smollm2, "Hi"), 0, *ids_of(smollm2, "there")]))
    deltas = stream(engine, smollm2, ["<|endoftext|>"])
    assert (shown(deltas), deltas[-1].stop_reason, engine.sent) == ("Hi", "<|endoftext|>", 2)
    assert engine.closed


def test_closing_the_stream_closes_the_engine(smollm2: ModelTokenizer) -> None:
    engine = Script(events(ids_of(smollm2, "one two three")))

    async def leave() -> None:
        async with aclosing(stream_text(engine, smollm2, request(), ())) as deltas:
            async for _ in deltas:
                break

    asyncio.run(leave())
    assert engine.closed
    assert engine.sent == 1


@pytest.mark.parametrize("stop", [(), ("four",), ("never",), ("four five",)])
def test_tokens_that_come_at_once_say_the_same_and_whether_more_is_there(
    smollm2: ModelTokenizer, stop: tuple[str, ...]
) -> None:
    said = events(ids_of(smollm2, "one two three four ☃ five, and six"))
    singly = stream(Script(said), smollm2, stop)
    assert not any(delta.more for delta in singly)
    for at_once in (2, 3, 5, 99):
        deltas = stream(Script(said, at_once=at_once), smollm2, stop)
        assert [replace(delta, more=False) for delta in deltas] == singly
        assert not deltas[-1].more
        assert at_once < 99 or all(delta.more for delta in deltas[:-1])


def test_the_engines_failure_reaches_the_caller(smollm2: ModelTokenizer) -> None:
    running = [TokenEvent("r", i) for i in ids_of(smollm2, "one two")]
    with pytest.raises(Unavailable, match="gone"):
        stream(Script(running, Unavailable("the engine is gone")), smollm2)


def test_sentencepiece_keeps_the_space_after_the_prompt(byte_fallback: ModelTokenizer) -> None:
    ids = ids_of(byte_fallback, "Hello world")
    text = AddRequest("r", tuple(ids), SamplingParams(max_tokens=10))
    assert shown(stream(Script(events(ids)), byte_fallback, submit=text)) == " Hello world"


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_text_is_cut_at_the_first_stop_string_whatever_the_tokens(smollm2: ModelTokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(3, 49_151), min_size=1, max_size=20))
    whole = smollm2.decode(ids, continued=True)
    places = st.tuples(st.integers(0, len(whole)), st.integers(1, 6))
    cuts = data.draw(st.lists(places, max_size=3))
    stops = [whole[at : at + length] for at, length in cuts if whole[at : at + length]]
    engine = Script(events(ids))
    deltas = stream(engine, smollm2, stops)
    ends = [(whole.index(stop) + len(stop), -len(stop), stop) for stop in stops]
    check_shape(deltas, engine.events[: engine.sent])
    shown_ids = ids[: engine.sent - deltas[-1].cut]
    assert smollm2.decode(shown_ids, continued=True).startswith(shown(deltas))
    if ends:
        end, _, stop = min(ends)
        assert (shown(deltas), deltas[-1].stop_reason) == (whole[: end - len(stop)], stop)
    else:
        assert (shown(deltas), deltas[-1].finish_reason) == (whole, "length")
