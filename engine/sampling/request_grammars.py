"""The grammars of requests: compiled, and advanced by every sampled token, in threads beside the step loop.

While the next mask of a sequence is computed, the sequence is blocked and the others run, so that a slow grammar delays
only the sequences that use it. The step loop waits a moment for the masks of quick grammars, because that costs less
than leaving their sequences out of a step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from time import thread_time

from torch import Tensor

from motet.core.errors import ErrorInfo, MotetError
from motet.core.messages import AddRequest
from motet.engine.sampling.grammar_masks import Grammar, GrammarCompiler, Matcher
from motet.engine.sampling.sampler import SampledToken
from motet.engine.schedule.sequence import Sequence

WAIT_SECONDS = 0.01
"""How long a step may wait for masks."""


@dataclass(eq=False)
class GrammarState:
    """A sequence's state in its grammar: `mask` (bool [vocab]) has the allowed ids.

    `stop_ids` are the request's ids that end the text; the grammar itself knows only those of the base model.
    `advance` runs in another thread; read what it sets only once `busy` is False again.
    """

    grammar: Grammar
    matcher: Matcher
    stop_ids: list[int]
    mask: Tensor
    complete: bool = False
    error: ErrorInfo | None = None
    busy: bool = False

    def advance(self, token: int, last: bool) -> None:
        """Accept a sampled token, and compute the next mask unless it is the `last` token."""
        try:
            with self.grammar.lock:
                self._advance(token, last)
        except Exception as error:  # a grammar must fail no request but its own
            self.error = _error_info(error, "following")
        self.busy = False

    def _advance(self, token: int, last: bool) -> None:
        self.grammar.check()
        start = thread_time()
        try:
            self.matcher.advance(token)
            self.complete = self.matcher.complete()
            if not (last or self.complete):
                mask = self.matcher.allowed()
                if self.matcher.accepting():
                    mask.numpy()[self.stop_ids] = True
                self.mask = mask
        finally:
            self.grammar.charge(thread_time() - start)


@dataclass(frozen=True)
class PendingToken:
    """A sampled token that a sequence's grammar has to accept."""

    sequence: Sequence
    sampled: SampledToken
    state: GrammarState
    last: bool

    def advance(self) -> None:
        """Let the grammar accept the token."""
        self.state.advance(self.sampled.token, self.last)


class RequestGrammars:
    """The grammars of all requests of an engine. Only the step loop calls it."""

    def __init__(self, compiler: GrammarCompiler) -> None:
        self._compiler = compiler
        self._compiling: dict[str, tuple[AddRequest, bytes, Future[Grammar]]] = {}
        self._states: dict[str, GrammarState] = {}
        self._pending: dict[str, PendingToken] = {}
        # Quick grammars have a thread of their own, so that slow ones do not delay them.
        self._quick, self._slow = (ThreadPoolExecutor(1, thread_name_prefix="masks") for _ in range(2))
        self._quick_batch: Future[None] | None = None
        self._wait_for_quick = False

    @property
    def num_compiling(self) -> int:
        """How many requests wait for their grammar to be compiled."""
        return len(self._compiling)

    @property
    def busy(self) -> bool:
        """Whether `take_compiled` or `take_advanced` will soon have a result."""
        return bool(self._compiling or self._pending)

    def close(self) -> None:
        """End the threads."""
        self._compiler.close()
        for pool in (self._quick, self._slow):
            pool.shutdown(wait=False, cancel_futures=True)

    def compile(self, request: AddRequest, client: bytes) -> None:
        """Begin to compile the grammar of a request; `take_compiled` returns the request."""
        assert request.grammar is not None
        self._compiling[request.id] = request, client, self._compiler.compile(request.grammar)

    def take_compiled(self, vocab_size: int) -> list[tuple[AddRequest, bytes, ErrorInfo | None]]:
        """The requests whose grammars have been compiled, with their clients, and the error if that failed."""
        done = [entry for entry in self._compiling.values() if entry[2].done()]
        return [(request, client, self._start(request, future, vocab_size)) for request, client, future in done]

    def compiling_in_group(self, group: str) -> list[tuple[AddRequest, bytes]]:
        """The requests of a group whose grammars are being compiled, with their clients."""
        return [(request, client) for request, client, _ in self._compiling.values() if request.belongs_to(group)]

    def forget(self, id: str) -> None:
        """Forget a sequence that has ended."""
        self._states.pop(id, None)
        self._pending.pop(id, None)
        if entry := self._compiling.pop(id, None):
            future = entry[2]
            if all(other is not future for _, _, other in self._compiling.values()):
                future.cancel()

    def has(self, id: str) -> bool:
        """Whether a sequence has a grammar."""
        return id in self._states

    def block(self, rows: Iterable[Sequence]) -> None:
        """Block the sequences that have a grammar: it must accept their sampled token before their next step."""
        for sequence in rows:
            if sequence.id in self._states:
                sequence.blocked = True

    def masks(self, rows: list[Sequence]) -> dict[int, Tensor]:
        """The allowed ids (bool [vocab]) of the rows whose sequences have a grammar; none of them is blocked."""
        return {row: self._states[s.id].mask for row, s in enumerate(rows) if s.id in self._states}

    def advance(self, sampled: Iterable[tuple[Sequence, SampledToken, bool]]) -> None:
        """Let grammars accept sampled tokens, each with whether it is the last; blocks the sequences meanwhile."""
        quick: list[PendingToken] = []
        for sequence, token, last in sampled:
            state = self._states[sequence.id]
            pending = self._pending[sequence.id] = PendingToken(sequence, token, state, last)
            sequence.blocked = state.busy = True
            if state.grammar.quick:
                quick.append(pending)
            else:
                self._slow.submit(pending.advance)
        if quick:
            # If one batch is late, the next is not waited for, so that late masks do not slow down every step.
            self._wait_for_quick = self._quick_batch is None or self._quick_batch.done()
            self._quick_batch = self._quick.submit(self._advance_all, quick)

    def take_advanced(self) -> list[PendingToken]:
        """The tokens that grammars have accepted; unblocks their sequences. Waits a moment for quick grammars."""
        if self._quick_batch is not None and self._wait_for_quick:
            wait([self._quick_batch], WAIT_SECONDS)
            self._wait_for_quick = False
        done = [pending for pending in self._pending.values() if not pending.state.busy]
        for pending in done:
            del self._pending[pending.sequence.id]
            pending.sequence.blocked = False
        return done

    def _advance_all(self, batch: list[PendingToken]) -> None:
        for pending in batch:
            if pending.state.grammar.quick:
                pending.advance()
            else:  # it has become slow
                with contextlib.suppress(RuntimeError):  # the engine is ending
                    self._slow.submit(pending.advance)

    def _start(self, request: AddRequest, future: Future[Grammar], vocab_size: int) -> ErrorInfo | None:
        del self._compiling[request.id]
        try:
            grammar = future.result()
            matcher, mask = grammar.start(), grammar.first
            stop_ids = [id for id in request.params.ending_ids() if id < vocab_size]
            if grammar.may_be_empty:
                mask = mask.clone()
                mask[stop_ids] = True
            self._states[request.id] = GrammarState(grammar, matcher, stop_ids, mask)
        except Exception as error:  # a grammar must fail no request but its own
            return _error_info(error, "compiling")
        return None


def _error_info(error: Exception, doing: str) -> ErrorInfo:
    return (error if isinstance(error, MotetError) else MotetError(f"{doing} the grammar failed: {error}")).info()
