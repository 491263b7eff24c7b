"""A process that compiles grammars: a small one may ask for endless work, which only a process's end can stop.

A request is a GrammarSpec as msgpack, the answer a string: what is wrong with it, "" if nothing is. For a JSON schema,
it begins with the path of the part at fault and a zero byte.
"""

from __future__ import annotations

import json
import re
import time

import msgspec
from llguidance import LLMatcher

from motet.core.output_formats import GrammarSpec
from motet.engine.client.llguidance_grammar import LIMITS, grammar_source
from motet.engine.client.schema_error_path import schema_error_path
from motet.engine.client.subprocess_main import serve

CPU_SECONDS = 10
_MEMORY_BYTES = 1 << 30
_MAX_CHARACTERS = 2000
_WITHIN = re.compile(r"\n  while processing json-schema:///\S*")
"""Where the library was when it failed, in its own terms."""

QUICK_SECONDS = 0.2
"""A schema that takes longer is not compiled again and again to find its fault."""


def problem(spec: GrammarSpec) -> str:
    """What is wrong with `spec`."""
    try:
        wrong, messages = LLMatcher.validate_grammar_with_warnings(grammar_source(spec), limits=LIMITS)
    except ValueError as error:
        return str(error)
    return _WITHIN.sub("", "\n".join(messages)) if wrong else ""


def located(spec: GrammarSpec) -> str:
    """What is wrong with `spec`, and where."""
    began = time.monotonic()
    message = problem(spec)
    if not message or spec.kind != "json_schema" or time.monotonic() - began > QUICK_SECONDS:
        return message
    path = schema_error_path(
        json.loads(spec.text), message, lambda part: problem(GrammarSpec(spec.kind, json.dumps(part)))
    )
    return f"{path}\0{message}"


def main() -> None:
    """Serve stdin until it ends."""
    decoder = msgspec.msgpack.Decoder(GrammarSpec)

    def answer(request: bytes) -> bytes:
        try:
            return located(decoder.decode(request))[:_MAX_CHARACTERS].encode(errors="replace")
        except MemoryError:
            return b"it needs too much memory"

    serve(answer, _MEMORY_BYTES, CPU_SECONDS)


if __name__ == "__main__":
    main()
