"""`response_format` as a grammar that is known to compile, so that a bad one is a 400 before anything runs."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping

from llguidance import LLMatcher

from motet.api.echo import shortened
from motet.core.errors import InvalidRequest
from motet.core.formats import GrammarSpec, OutputFormat
from motet.engine.client.grammar import grammar_source

MAX_GRAMMAR_CHARACTERS = 256 * 1024
MAX_SECONDS = 10.0
REMEMBERED = 256


class GrammarChecker:
    """Compiles each new grammar once, off the event loop, and remembers the latest ones that passed."""

    def __init__(self) -> None:
        self._good: OrderedDict[GrammarSpec, None] = OrderedDict()

    async def of(
        self, response_format: Mapping[str, object] | None, formats: Mapping[str, OutputFormat]
    ) -> GrammarSpec | None:
        """The grammar for `response_format`, or None for free text. Raises InvalidRequest naming the field."""
        if response_format is None:
            return None
        kind = response_format.get("type")
        if not isinstance(kind, str):
            code = "invalid_type" if "type" in response_format else "missing_required_parameter"
            raise InvalidRequest("response_format.type must be a text", param="response_format.type", code=code)
        if kind not in formats:
            known = ", ".join(sorted(formats))
            raise InvalidRequest(
                f"no output format is called {kind[:64]!r}; this server has: {known}", param="response_format.type"
            )
        spec = formats[kind].grammar(response_format)
        if spec is not None:
            await self.check(spec)
        return spec

    async def check(self, spec: GrammarSpec, param: str = "response_format") -> None:
        """Raise InvalidRequest naming `param` if `spec` is too large, takes too long to compile, or is wrong."""
        if spec in self._good:
            self._good.move_to_end(spec)
            return
        if len(spec.text) > MAX_GRAMMAR_CHARACTERS:
            raise _refused(f"it has {len(spec.text)} characters; {MAX_GRAMMAR_CHARACTERS} are allowed", param)
        try:
            async with asyncio.timeout(MAX_SECONDS):
                problem = await asyncio.to_thread(_problem, spec)
        except TimeoutError:
            problem = "it takes too long to compile"
        if problem:
            raise _refused(problem, param)
        self._good[spec] = None
        if len(self._good) > REMEMBERED:
            self._good.popitem(last=False)


def _problem(spec: GrammarSpec) -> str:
    try:
        wrong, messages = LLMatcher.validate_grammar_with_warnings(grammar_source(spec))
    except ValueError as error:
        return str(error)
    return "\n".join(messages) if wrong else ""


def _refused(why: str, param: str) -> InvalidRequest:
    return InvalidRequest(f"the output grammar is refused: {shortened(why)}", param=param, code="invalid_grammar")
