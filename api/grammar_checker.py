"""Turns `response_format` into a grammar and compiles it in a subprocess, so that an invalid one is a 400 at once."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import OrderedDict
from collections.abc import Mapping

import msgspec

from motet.core import error_codes
from motet.core.blocking_calls import BlockingCalls
from motet.core.errors import InvalidRequest, MotetError, Unavailable
from motet.core.excerpt import shortened
from motet.core.output_format import GrammarSpec, OutputFormat
from motet.engine.client.subprocess_pool import SubprocessPool
from motet.engine.client.subprocess_worker import Crashed, TooSlow

MAX_GRAMMAR_CHARACTERS = 256 * 1024
MAX_SECONDS = 3.0
FORMAT_SECONDS = 5.0
BAN_SECONDS = 60.0
MAX_WAITING = 64
MAX_CACHED = 256
_SCHEMA = re.compile(r"at \d+\(\d+\): failed to compile JSON schema: (.*?)\n +\d+ \| .*", re.DOTALL)
_SCHEMAS = {"json_schema": "response_format.json_schema.schema", "json_object": "response_format.schema"}
"""The field that contains an output format's schema."""

_ADVICE = {
    "oneOf constraints": "oneOf with alternatives that overlap cannot be enforced; use anyOf, or leave strict out",
    "Resource ": "$ref to another document is not followed; put the definition under $defs",
}
"""llguidance's messages with advice that callers cannot follow, by prefix, and what to report instead."""

TOO_SLOW = "it takes too long to compile"

_WORKER, _TASK = "motet.engine.client.grammar_worker", "their grammar compiled"


class GrammarChecker:
    """Compiles each new grammar once, in a subprocess, and caches the latest results.

    Call close() at the end, in the same event loop.
    """

    def __init__(self) -> None:
        self._formats = BlockingCalls("output-formats", per_key=8)
        self._results: OrderedDict[GrammarSpec, tuple[str, float]] = OrderedDict()
        # Separate processes: a slow grammar delays neither other owners' grammars nor anything else.
        self._workers = SubprocessPool(_WORKER, _TASK, MAX_SECONDS, count=2, room=MAX_WAITING)

    async def close(self) -> None:
        """Stop the processes."""
        await self._workers.close()

    async def grammar_for(
        self, response_format: Mapping[str, object] | None, formats: Mapping[str, OutputFormat], owner: str = ""
    ) -> GrammarSpec | None:
        """The grammar for `response_format`, or None for free text. Raises InvalidRequest naming the field.

        Owners take turns for compiling.
        """
        if response_format is None:
            return None
        kind = response_format.get("type")
        if not isinstance(kind, str):
            code = error_codes.INVALID_TYPE if "type" in response_format else error_codes.MISSING_REQUIRED_PARAMETER
            raise InvalidRequest("response_format.type must be a string", param="response_format.type", code=code)
        if kind not in formats:
            known = ", ".join(sorted(formats))
            raise InvalidRequest(
                f"no output format is called {kind[:64]!r}; available: {known}", param="response_format.type"
            )
        spec = await self._grammar_spec(kind, formats[kind], response_format)
        if spec is not None:
            await self.check(spec, schema=_SCHEMAS.get(kind, "response_format"), owner=owner)
        return spec

    async def _grammar_spec(
        self, kind: str, form: OutputFormat, response_format: Mapping[str, object]
    ) -> GrammarSpec | None:
        """The output format's grammar, made in a thread, since a plugin may block. Raises MotetError."""
        try:
            async with asyncio.timeout(FORMAT_SECONDS):
                spec = await self._formats.run(kind, lambda: form.grammar(response_format))
        except TimeoutError:
            raise Unavailable(
                f"the output format {kind!r} did not respond within {FORMAT_SECONDS:g} s", param="response_format.type"
            ) from None
        if not isinstance(spec, GrammarSpec | None):
            name = f"{type(form).__module__}.{type(form).__qualname__}"
            raise MotetError(f"{name}.grammar returned {type(spec).__name__}; expected GrammarSpec or None")
        return spec

    async def check(
        self, spec: GrammarSpec, param: str = "response_format", schema: str | None = None, owner: str = ""
    ) -> None:
        """Raise InvalidRequest naming `param` if `spec` is too large, takes too long to compile, or is wrong.

        If a part of a JSON schema is at fault, its path is named instead; `schema` is the field with the schema.
        """
        if len(spec.text) > MAX_GRAMMAR_CHARACTERS:
            raise _refused(f"it has {len(spec.text)} characters; {MAX_GRAMMAR_CHARACTERS} are allowed", param)
        if (problem := self._cached_problem(spec)) is None:
            problem = await self._compile(spec, owner)
        if problem:
            path, _, why = problem.rpartition("\0")
            raise _refused(why, f"{schema or param}.{shortened(path)}" if path else param, bool(path))

    def _cached_problem(self, spec: GrammarSpec) -> str | None:
        problem, until = self._results.get(spec, (None, 0.0))
        return problem if time.monotonic() < until else None

    async def _compile(self, spec: GrammarSpec, owner: str) -> str:
        """The error of a new grammar, empty if it compiles. Raises Overloaded, Unavailable."""
        async with self._workers.acquire(owner) as worker:
            if (cached := self._cached_problem(spec)) is not None:  # another request compiled it meanwhile
                return cached
            until = math.inf
            try:
                problem = (await worker.exchange(msgspec.msgpack.encode(spec))).decode()
            except TooSlow:
                # Only for a while: the machine may have been slow.
                problem, until = TOO_SLOW, time.monotonic() + BAN_SECONDS
            except Crashed:
                problem = "the compiler crashed on it"
        self._results[spec] = (problem, until)
        if len(self._results) > MAX_CACHED:
            self._results.popitem(last=False)
        return problem


def _refused(why: str, param: str, located: bool = False) -> InvalidRequest:
    if (within := _SCHEMA.fullmatch(why)) is not None:  # the caller did not write the lines that follow
        why = within[1]
    why = next((advice for start, advice in _ADVICE.items() if why.startswith(start)), shortened(why))
    where = f"{param}: " if located else ""
    return InvalidRequest(f"the output grammar is invalid: {where}{why}", param=param, code=error_codes.INVALID_GRAMMAR)
