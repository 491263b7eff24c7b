"""Stop strings against their plain definition, however the text is cut."""

from __future__ import annotations

import time

from hypothesis import given, settings
from hypothesis import strategies as st

from motet.engine.client.stop_strings import StopStrings

WORDS = st.text(alphabet="ab\n", min_size=1, max_size=5)
PIECES = st.lists(st.tuples(st.text(alphabet="ab\n", max_size=6), st.booleans()), max_size=12)


def naive(pieces: list[tuple[str, bool]], stops: list[str]) -> tuple[str, str | None]:
    """Grow the text by one character at a time; the longest stop string that it then ends with counts."""
    text = ""
    for piece, enabled in pieces:
        for character in piece:
            text += character
            found = max((stop for stop in stops if text.endswith(stop)), key=len, default=None)
            if found and enabled:
                return text[: -len(found)], found
    return text, None


@settings(max_examples=300, deadline=None)
@given(pieces=PIECES, stops=st.lists(WORDS, max_size=4))
def test_equals_the_definition(pieces: list[tuple[str, bool]], stops: list[str]) -> None:
    expected, expected_stop = naive(pieces, stops)
    finder, shown, found = StopStrings(stops), "", None
    for piece, enabled in pieces:
        part, found = finder.push(piece, enabled=enabled)
        shown += part
        # What is shown can never be taken back.
        assert expected.startswith(shown)
        if found:
            break
    assert (shown + finder.flush(), found) == (expected, expected_stop)


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet="ab", max_size=20), stops=st.lists(WORDS, min_size=1, max_size=3))
def test_holds_back_no_more_than_the_start_of_a_stop_string(text: str, stops: list[str]) -> None:
    finder = StopStrings(stops)
    shown, found = finder.push(text)
    if not found:
        held = text[len(shown) :]
        starts = [text[-n:] for n in range(1, len(text) + 1) if any(s.startswith(text[-n:]) for s in stops)]
        assert held == max(starts, key=len, default="")


def test_the_earliest_completion_wins_whatever_the_order() -> None:
    for stops in (["abcd", "bc"], ["bc", "abcd"]):
        assert StopStrings(stops).push("xabcd") == ("xa", "bc")


def test_at_the_same_end_the_longest_wins() -> None:
    assert StopStrings(["b", "ab"]).push("xab") == ("x", "ab")


def test_held_text_is_released_when_it_cannot_be_a_start_any_more() -> None:
    finder = StopStrings(["\nUser:"])
    assert [finder.push(piece)[0] for piece in ("Hi", "\n", "Us", "e", "ful")] == ["Hi", "", "", "", "\nUseful"]


def test_long_stop_strings_cost_no_more_for_each_character() -> None:
    finder = StopStrings(["a" * 5000 + "b" * n for n in range(1, 5)])
    started = time.perf_counter()
    for _ in range(20_000):
        finder.push("a")
    assert time.perf_counter() - started < 3
