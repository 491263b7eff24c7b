"""Compiles grammars in threads, and computes masks of the token ids that a grammar allows next.

Only one thread at a time may call into a grammar: its matchers share a lexer, and llguidance waits for the lexer's
lock without releasing the GIL.
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
from motet.core.output_format import GrammarSpec
from motet.engine.client.llguidance_grammar import LIMITS, grammar_source

REMEMBERED = 128
"""Compiled grammars in the cache; the least recently used ones are dropped first."""

QUICK_SECONDS, QUICK_AFTER_MASKS = 0.002, 4
"""A grammar is quick while its masks take less than QUICK_SECONDS on average, after its first few masks."""

COSTLY_SECONDS = 0.005
"""A grammar is refused when its masks take this long on average: hundreds of times the usual time."""

AVERAGE_MASKS = 64
"""About how many of the latest masks the average covers."""

BAN_SECONDS = 60.0


class Grammar:
    """A compiled grammar, with the CPU time of its masks. Raises InvalidRequest if the first mask fails."""

    def __init__(self, pattern: llguidance.LLMatcher, vocab_size: int) -> None:
        self.lock = threading.Lock()
        self.vocab_size = vocab_size
        self._pattern = pattern
        self._masks, self._mean, self._banned_until = 0, 0.0, 0.0
        self._panicked = False
        # The first mask is often the most expensive one; all sequences with this grammar share it.
        start = self.start()
        self.first, self.may_be_empty = start.allowed(), start.accepting()

    @property
    def quick(self) -> bool:
        """Whether its masks are fast enough that a step can wait for them."""
        return self._masks >= QUICK_AFTER_MASKS and self._mean < QUICK_SECONDS

    @property
    def spent(self) -> bool:
        """Whether it must be compiled again: it panicked, or its time of refusal is over."""
        return (self._panicked or self._banned_until > 0) and self._banned_until <= time.monotonic()

    def start(self) -> Matcher:
        """A matcher at the grammar's start. Raises InvalidRequest while the grammar is refused."""
        self.check()
        return Matcher(self._pattern.deep_copy(), self)

    def check(self) -> None:
        """Raise InvalidRequest while the grammar is refused."""
        if time.monotonic() < self._banned_until:
            raise InvalidRequest(
                "the output grammar is refused: it is too expensive to enforce; simplify it, with fewer alternatives"
                " that begin alike",
                param="response_format",
                code=error_codes.INVALID_GRAMMAR,
            )

    def charge(self, seconds: float) -> None:
        """Add a mask's CPU time to the average. Raises InvalidRequest if the average is too high."""
        self._masks += 1
        self._mean += (seconds - self._mean) / AVERAGE_MASKS
        if self._mean > COSTLY_SECONDS:
            self.ban()

    def fail(self, reason: str) -> NoReturn:
        """Raise InvalidRequest. After a panic, the next request compiles the grammar again."""
        self._panicked = self._panicked or reason.startswith("panic")
        raise InvalidRequest(f"the grammar failed: {reason}", param="response_format", code=error_codes.INVALID_GRAMMAR)

    def ban(self) -> None:
        """Refuse the grammar for BAN_SECONDS, to running sequences too. Raises InvalidRequest."""
        self._banned_until = time.monotonic() + BAN_SECONDS
        self.check()


class Matcher:
    """One sequence's position in its grammar. The methods raise InvalidRequest if the grammar fails."""

    def __init__(self, matcher: llguidance.LLMatcher, grammar: Grammar) -> None:
        self._matcher, self._grammar = matcher, grammar

    def allowed(self) -> Tensor:
        """The ids that the grammar allows next: bool [vocab]."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():  # a limit was exceeded, which every later sequence would exceed too
            self._grammar.ban()
        # NumPy, not torch: every thread that computes in torch starts its own thread pool.
        mask = np.zeros(self._grammar.vocab_size, dtype=bool)
        known = np.unpackbits(bits, bitorder="little")[: len(mask)]
        mask[: len(known)] = known
        return torch.from_numpy(mask)

    def advance(self, token: int) -> None:
        """Move past a sampled token."""
        self._matcher.consume_token(token)
        if self._matcher.is_error():
            self._grammar.fail(_reason(self._matcher))

    def accepting(self) -> bool:
        """Whether the output may end here."""
        return bool(self._matcher.is_accepting())

    def complete(self) -> bool:
        """Whether the output must end here."""
        return bool(self._matcher.is_stopped())


class GrammarCompiler:
    """Compiles each grammar once, in its own threads. Call it from one thread only."""

    def __init__(self, directory: Path, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self._directory, self._vocab_size, self._eos = directory, vocab_size, eos_token_ids
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._loading = threading.Lock()
        self._compiled: OrderedDict[GrammarSpec, Future[Grammar]] = OrderedDict()
        # Two threads, so that one slow grammar does not block the others.
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="compiler")

    def compile(self, spec: GrammarSpec) -> Future[Grammar]:
        """The compiled grammar, from the cache if it is there. The future raises InvalidRequest if it is not valid."""
        known = self._compiled.get(spec)
        if known is None or (known.done() and _spent(known)):
            self._compiled[spec] = self._pool.submit(self._compile, spec)
            if len(self._compiled) > REMEMBERED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(spec)
        return self._compiled[spec]

    def close(self) -> None:
        """Stop the threads."""
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
    """The error's first line, without the dump of the parser's state after it."""
    return str(matcher.get_error()).partition("\n")[0]
