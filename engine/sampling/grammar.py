"""Grammars on rank 0: compiled off the step loop, then asked before every token which ids may come."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import llguidance
import numpy as np
import torch
from torch import Tensor

from motet.core.errors import InvalidRequest
from motet.core.formats import GrammarSpec
from motet.engine.client.grammar import grammar_source


class Matcher:
    """One request's place in its grammar. Raises InvalidRequest when the grammar cannot go on."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def allowed(self) -> Tensor:
        """Which ids may come next: bool [vocab]."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        mask = torch.from_numpy(np.unpackbits(bits, bitorder="little").astype(bool))
        return torch.nn.functional.pad(mask[: self._vocab_size], (0, max(0, self._vocab_size - len(mask))))

    def advance(self, token: int) -> None:
        """Take the token that was sampled."""
        self._matcher.consume_token(token)
        self._check()

    def accepting(self) -> bool:
        """Whether the text may end here."""
        return bool(self._matcher.is_accepting())

    def complete(self) -> bool:
        """Whether nothing more can come."""
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise InvalidRequest(f"the grammar failed: {_reason(self._matcher)}", param="response_format")


class GrammarCompiler:
    """Compiles grammars in a thread of its own; equal specs share the work."""

    def __init__(self, directory: Path, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self._directory, self._vocab_size, self._eos = directory, vocab_size, eos_token_ids
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._compiled: dict[GrammarSpec, llguidance.LLMatcher] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="grammar")

    def compile(self, spec: GrammarSpec) -> Future[Matcher]:
        """A matcher at the grammar's start. The future raises InvalidRequest if the grammar is bad."""
        return self._pool.submit(self._compile, spec)

    def close(self) -> None:
        """Let the thread end."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _compile(self, spec: GrammarSpec) -> Matcher:
        if self._tokenizer is None:
            path = str(self._directory / "tokenizer.json")
            self._tokenizer = llguidance.LLTokenizer(path, self._vocab_size, list(self._eos) or None)
        if spec not in self._compiled:
            if len(self._compiled) >= 128:
                self._compiled.pop(next(iter(self._compiled)))
            try:
                fresh = llguidance.LLMatcher(self._tokenizer, grammar_source(spec))
            except ValueError as error:
                raise InvalidRequest(f"the grammar is not valid: {error}", param="response_format") from error
            if fresh.is_error():
                raise InvalidRequest(f"the grammar is not valid: {_reason(fresh)}", param="response_format")
            # The first mask is the costly one (a second, for a vast regex): computed here, off the step, and kept.
            Matcher(fresh.deep_copy(), self._vocab_size).allowed()
            self._compiled[spec] = fresh
        return Matcher(self._compiled[spec].deep_copy(), self._vocab_size)


def _reason(matcher: llguidance.LLMatcher) -> str:
    """What went wrong, without the dump of the parser's state that follows the first line."""
    return str(matcher.get_error()).partition("\n")[0]
