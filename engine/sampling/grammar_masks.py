"""Grammars compiled off the step loop, and the places of sequences in them: which ids may come next.

Calls into one grammar come one at a time: its matchers share their lexer, and llguidance waits for that while it
keeps Python from running.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import llguidance
import numpy as np
import torch
from torch import Tensor

from motet.core import error_codes
from motet.core.errors import InvalidRequest
from motet.core.output_formats import GrammarSpec
from motet.engine.client.llguidance_grammar import LIMITS, grammar_source

REMEMBERED = 128
"""Compiled grammars kept, the latest used ones."""

QUICK_SECONDS, PROOF = 0.002, 4
"""A grammar is quick once it has given so many masks, as long as one takes less time than that in the mean."""

COSTLY_SECONDS = 0.005
"""A grammar is refused when its masks take this long in the mean: hundreds of times what is usual."""

MEMORY = 64
"""Masks that the mean looks back on, about."""

BAN_SECONDS = 60.0


class Grammar:
    """A compiled grammar, and what its masks have cost so far. Raises InvalidRequest if the first one fails."""

    def __init__(self, pattern: llguidance.LLMatcher, vocab_size: int) -> None:
        self.lock = threading.Lock()
        self.vocab_size = vocab_size
        self._pattern = pattern
        self._masks, self._mean, self._banned_until = 0, 0.0, 0.0
        self._panicked = False
        # The first mask is often the costly one, and all that follow the grammar share it.
        start = self.start()
        self.first, self.may_be_empty = start.allowed(), start.accepting()

    @property
    def quick(self) -> bool:
        """Whether it has shown that a mask is worth waiting for."""
        return self._masks >= PROOF and self._mean < QUICK_SECONDS

    @property
    def spent(self) -> bool:
        """Whether it panicked, or was refused for a while, which is over: it may be broken, and is made afresh."""
        return (self._panicked or self._banned_until > 0) and self._banned_until <= time.monotonic()

    def start(self) -> Matcher:
        """A place at its start. Raises InvalidRequest while the grammar is refused."""
        self.check()
        return Matcher(self._pattern.deep_copy(), self)

    def check(self) -> None:
        """Raise InvalidRequest while the grammar is refused."""
        if time.monotonic() < self._banned_until:
            raise InvalidRequest(
                "the output grammar is refused: what may come next takes too long to find out; make it simpler, with"
                " fewer alternatives that begin alike",
                param="response_format",
                code=error_codes.INVALID_GRAMMAR,
            )

    def charge(self, seconds: float) -> None:
        """Count a mask that took `seconds` of the processor. Raises InvalidRequest if that was too much."""
        self._masks += 1
        self._mean += (seconds - self._mean) / MEMORY
        if self._mean > COSTLY_SECONDS:
            self.ban()

    def fail(self, reason: str) -> NoReturn:
        """Raise InvalidRequest. After a panic all that follow the grammar fail, and who comes next has a fresh one."""
        self._panicked = self._panicked or reason.startswith("panic")
        raise InvalidRequest(f"the grammar failed: {reason}", param="response_format", code=error_codes.INVALID_GRAMMAR)

    def ban(self) -> None:
        """Refuse the grammar for a while, to those that follow it already too. Raises InvalidRequest."""
        self._banned_until = time.monotonic() + BAN_SECONDS
        self.check()


class Matcher:
    """One sequence's place in its grammar. Raises InvalidRequest when the grammar cannot go on."""

    def __init__(self, matcher: llguidance.LLMatcher, grammar: Grammar) -> None:
        self._matcher, self._grammar = matcher, grammar

    def allowed(self) -> Tensor:
        """Which ids may come next: bool [vocab]."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():  # only ever for a limit: those that come after would run into it as well
            self._grammar.ban()
        # No computing in torch here: each thread that does so gets a pool of threads of its own.
        mask = np.zeros(self._grammar.vocab_size, dtype=bool)
        known = np.unpackbits(bits, bitorder="little")[: len(mask)]
        mask[: len(known)] = known
        return torch.from_numpy(mask)

    def advance(self, token: int) -> None:
        """Take the token that was sampled."""
        self._matcher.consume_token(token)
        if self._matcher.is_error():
            self._grammar.fail(_reason(self._matcher))

    def accepting(self) -> bool:
        """Whether the text may end here."""
        return bool(self._matcher.is_accepting())

    def complete(self) -> bool:
        """Whether nothing more can come."""
        return bool(self._matcher.is_stopped())


class GrammarCompiler:
    """Compiles grammars in threads of its own, each once. To be called from one thread."""

    def __init__(self, directory: Path, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self._directory, self._vocab_size, self._eos = directory, vocab_size, eos_token_ids
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._loading = threading.Lock()
        self._compiled: OrderedDict[GrammarSpec, Future[Grammar]] = OrderedDict()
        # Who sends grammars that take long has one of the two, at times.
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="compiler")

    def compile(self, spec: GrammarSpec) -> Future[Grammar]:
        """The grammar, for all who ask for it. The future raises InvalidRequest if it is bad."""
        known = self._compiled.get(spec)
        if known is None or (known.done() and _spent(known)):
            self._compiled[spec] = self._pool.submit(self._compile, spec)
            if len(self._compiled) > REMEMBERED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(spec)
        return self._compiled[spec]

    def close(self) -> None:
        """Let the threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _compile(self, spec: GrammarSpec) -> Grammar:
        with self._loading:
            if self._tokenizer is None:
                path = str(self._directory / "tokenizer.json")
                self._tokenizer = llguidance.LLTokenizer(path, self._vocab_size, list(self._eos) or None)
        try:
            pattern = llguidance.LLMatcher(self._tokenizer, grammar_source(spec), log_level=0, limits=LIMITS)
        except ValueError as error:
            raise InvalidRequest(f"the grammar is not valid: {error}", param="response_format") from error
        if pattern.is_error():
            raise InvalidRequest(f"the grammar is not valid: {_reason(pattern)}", param="response_format")
        return Grammar(pattern, self._vocab_size)


def _spent(compiled: Future[Grammar]) -> bool:
    return compiled.cancelled() or compiled.exception() is not None or compiled.result().spent


def _reason(matcher: llguidance.LLMatcher) -> str:
    """What went wrong, without the dump of the parser's state that follows the first line."""
    return str(matcher.get_error()).partition("\n")[0]
