"""A process that compiles grammars: a small one may ask for endless work, which only a process's end can stop.

A request is a GrammarSpec as msgpack, the answer a text: what is wrong with it, "" if nothing is.
"""

from __future__ import annotations

import msgspec
from llguidance import LLMatcher

from motet.core.formats import GrammarSpec
from motet.engine.client.grammar import LIMITS, grammar_source
from motet.engine.client.worker_process import serve

CPU_SECONDS = 10
_MEMORY_BYTES = 1 << 30
_MAX_CHARACTERS = 2000


def problem(spec: GrammarSpec) -> str:
    """What is wrong with `spec`."""
    try:
        wrong, messages = LLMatcher.validate_grammar_with_warnings(grammar_source(spec), limits=LIMITS)
    except ValueError as error:
        return str(error)
    return "\n".join(messages) if wrong else ""


def main() -> None:
    """Serve stdin until it ends."""
    decoder = msgspec.msgpack.Decoder(GrammarSpec)

    def answer(request: bytes) -> bytes:
        try:
            return problem(decoder.decode(request))[:_MAX_CHARACTERS].encode(errors="replace")
        except MemoryError:
            return b"it needs too much memory"

    serve(answer, _MEMORY_BYTES, CPU_SECONDS)


if __name__ == "__main__":
    main()
