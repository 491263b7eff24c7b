"""Matches an adapter's regexes in a worker process: a short regex can need endless time and memory.

module_patterns.py starts it. Requests and answers are msgpack structs; the regexes are Python's, as in PEFT.
"""

from __future__ import annotations

import re

import msgspec

from motet.engine.client.subprocess_main import serve

CPU_SECONDS = 5
"""CPU seconds for one field's patterns; a large model's adapter can have hundreds, for hundreds of modules."""

MEMORY_BYTES = 256 << 20
_MAX_ERROR_CHARACTERS = 300


class MatchRequest(msgspec.Struct):
    """Match `patterns` against whole names of `modules`, or with `suffix` also against the part after a dot."""

    patterns: list[str]
    modules: list[str]
    suffix: bool = False


class MatchAnswer(msgspec.Struct):
    """For each module the index of the first pattern that matches, -1 for none; or an error message."""

    first: list[int]
    error: str = ""


def match(request: MatchRequest) -> MatchAnswer:
    """Match one request; an error in its patterns becomes an answer."""
    try:
        sources = [rf"(.*\.)?({p})" if request.suffix else p for p in request.patterns]
        patterns = [re.compile(source) for source in sources]
        first = [next((i for i, p in enumerate(patterns) if p.fullmatch(m)), -1) for m in request.modules]
    except MemoryError:
        return MatchAnswer([], f"it needs more than {MEMORY_BYTES >> 20} MiB of memory")
    except (re.error, OverflowError, RecursionError) as error:
        return MatchAnswer([], str(error)[:_MAX_ERROR_CHARACTERS])
    return MatchAnswer(first)


def main() -> None:
    """Answer requests from stdin until it ends."""
    decoder, encoder = msgspec.msgpack.Decoder(MatchRequest), msgspec.msgpack.Encoder()
    serve(lambda request: encoder.encode(match(decoder.decode(request))), MEMORY_BYTES, CPU_SECONDS)


if __name__ == "__main__":
    main()
