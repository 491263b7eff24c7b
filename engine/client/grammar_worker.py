"""Compiles grammars in a worker process: a small grammar can take endless time, and only killing the process stops it.

A request is a GrammarSpec as msgpack; the answer is an error message, empty if the grammar is valid. For a JSON
schema, the message begins with the path of the part at fault and a zero byte.
"""

from __future__ import annotations

import json
import re
import time

import msgspec
from llguidance import LLMatcher

from motet.core.output_format import GrammarSpec
from motet.engine.client.llguidance_grammar import LIMITS, grammar_source
from motet.engine.client.schema_error_path import schema_error_path
from motet.engine.client.subprocess_main import serve

CPU_SECONDS = 10
_MEMORY_BYTES = 1 << 30
_MAX_CHARACTERS = 2000
_LOCATION = re.compile(r"\n  while processing json-schema:///\S*")
"""The library's own description of where it failed; removed from messages."""

QUICK_SECONDS = 0.2
"""If a schema takes longer to compile, its parts are not compiled to locate the error."""


def grammar_error(spec: GrammarSpec) -> str:
    """The error message for `spec`, empty if it is valid."""
    try:
        failed, messages = LLMatcher.validate_grammar_with_warnings(grammar_source(spec), limits=LIMITS)
    except ValueError as error:
        return str(error)
    return _LOCATION.sub("", "\n".join(messages)) if failed else ""


def located_error(spec: GrammarSpec) -> str:
    """The error message for `spec`, in front of it the path of the part at fault; empty if `spec` is valid."""
    began = time.monotonic()
    message = grammar_error(spec)
    if not message or spec.kind != "json_schema" or time.monotonic() - began > QUICK_SECONDS:
        return message
    path = schema_error_path(
        json.loads(spec.text), message, lambda part: grammar_error(GrammarSpec(spec.kind, json.dumps(part)))
    )
    return f"{path}\0{message}"


def main() -> None:
    """Answer requests from stdin until it ends."""
    decoder = msgspec.msgpack.Decoder(GrammarSpec)

    def answer(request: bytes) -> bytes:
        try:
            return located_error(decoder.decode(request))[:_MAX_CHARACTERS].encode(errors="replace")
        except MemoryError:
            return b"it needs too much memory"

    serve(answer, _MEMORY_BYTES, CPU_SECONDS)


if __name__ == "__main__":
    main()
