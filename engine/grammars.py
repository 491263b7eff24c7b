"""The sequences that follow grammars: from the compiling to each next mask, all computed beside the step loop.

While a sequence's mask is computed it sits out: others go on, and a costly grammar holds up nobody but those who
follow it. The loop waits for the masks of quick grammars, a moment at most, since that costs less than a step.
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
from motet.engine.sampling.grammar import Grammar, GrammarCompiler, Matcher
from motet.engine.sampling.sampler import SampledToken
from motet.engine.schedule.sequence import Sequence

WAIT_SECONDS = 0.01
"""How long a step may wait for masks."""


@dataclass(eq=False)
class Follower:
    """A sequence's place in its grammar; `mask` (bool [vocab]) says what may come next, `ending` what ends the text.

    `move` runs in another thread; what it says is to be read once `moving` is False again.
    """

    grammar: Grammar
    matcher: Matcher
    ending: list[int]
    mask: Tensor
    complete: bool = False
    error: ErrorInfo | None = None
    moving: bool = False

    def move(self, token: int, last: bool) -> None:
        """Take a sampled token and find the next mask, unless it was the `last` one."""
        try:
            with self.grammar.lock:
                self._move(token, last)
        except Exception as error:  # a grammar can only ever fail its own request
            self.error = _info(error, "following")
        self.moving = False

    def _move(self, token: int, last: bool) -> None:
        self.grammar.check()
        began = thread_time()
        try:
            self.matcher.advance(token)
            self.complete = self.matcher.complete()
            if not (last or self.complete):
                mask = self.matcher.allowed()
                if self.matcher.accepting():  # the grammar knows the base's own end only
                    mask.numpy()[self.ending] = True
                self.mask = mask
        finally:
            self.grammar.charge(thread_time() - began)


@dataclass(frozen=True)
class Move:
    """A token that a sequence's grammar has still to take."""

    sequence: Sequence
    choice: SampledToken
    follower: Follower
    last: bool

    def run(self) -> None:
        """Let the grammar take it."""
        self.follower.move(self.choice.token, self.last)


class Grammars:
    """All grammars of an engine. To be called from the step loop."""

    def __init__(self, compiler: GrammarCompiler) -> None:
        self._compiler = compiler
        self._compiling: dict[str, tuple[AddRequest, bytes, Future[Grammar]]] = {}
        self._followers: dict[str, Follower] = {}
        self._moves: dict[str, Move] = {}
        # Quick grammars have a thread of their own, so that no other one can stand in their way.
        self._quick, self._slow = (ThreadPoolExecutor(1, thread_name_prefix="masks") for _ in range(2))
        self._batch: Future[None] | None = None
        self._waits = False

    @property
    def compiling(self) -> int:
        """How many requests wait for their grammar."""
        return len(self._compiling)

    @property
    def busy(self) -> bool:
        """Whether there is something to come back for soon."""
        return bool(self._compiling or self._moves)

    def close(self) -> None:
        """Let the threads end."""
        self._compiler.close()
        for pool in (self._quick, self._slow):
            pool.shutdown(wait=False, cancel_futures=True)

    def compile(self, request: AddRequest, client: bytes) -> None:
        """Take in a request that has a grammar; `compiled` gives it back."""
        assert request.grammar is not None
        self._compiling[request.id] = request, client, self._compiler.compile(request.grammar)

    def compiled(self, vocab_size: int) -> list[tuple[AddRequest, bytes, ErrorInfo | None]]:
        """The requests whose grammars are compiled by now, with what is wrong if that failed."""
        done = [entry for entry in self._compiling.values() if entry[2].done()]
        return [(request, client, self._start(request, future, vocab_size)) for request, client, future in done]

    def in_group(self, group: str) -> list[tuple[AddRequest, bytes]]:
        """The requests of a group whose grammars are still being compiled."""
        return [(request, client) for request, client, _ in self._compiling.values() if request.belongs_to(group)]

    def forget(self, id: str) -> None:
        """A sequence has ended, or is no longer wanted."""
        self._followers.pop(id, None)
        self._moves.pop(id, None)
        if entry := self._compiling.pop(id, None):
            future = entry[2]
            if all(other is not future for _, _, other in self._compiling.values()):
                future.cancel()

    def follows(self, id: str) -> bool:
        """Whether a sequence follows a grammar."""
        return id in self._followers

    def masks(self, rows: list[Sequence]) -> dict[int, Tensor]:
        """The allowed ids (bool [vocab]) of the rows that follow a grammar, none of which is held."""
        return {row: self._followers[s.id].mask for row, s in enumerate(rows) if s.id in self._followers}

    def take(self, sampled: Iterable[tuple[Sequence, SampledToken, bool]]) -> None:
        """Let grammars take sampled tokens, each with whether it is the last; the sequences are held meanwhile."""
        quick: list[Move] = []
        for sequence, choice, last in sampled:
            follower = self._followers[sequence.id]
            move = self._moves[sequence.id] = Move(sequence, choice, follower, last)
            sequence.blocked = follower.moving = True
            if follower.grammar.quick:
                quick.append(move)
            else:
                self._slow.submit(move.run)
        if quick:
            # When one is late, the next ones are not waited for: others are not to be slowed down at every step.
            self._waits = self._batch is None or self._batch.done()
            self._batch = self._quick.submit(self._run, quick)

    def taken(self) -> list[Move]:
        """The moves that are over; their sequences are held no longer. Waits a moment for those that are quick."""
        if self._batch is not None and self._waits:
            wait([self._batch], WAIT_SECONDS)
            self._waits = False
        over = [move for move in self._moves.values() if not move.follower.moving]
        for move in over:
            del self._moves[move.sequence.id]
            move.sequence.blocked = False
        return over

    def _run(self, moves: list[Move]) -> None:
        for move in moves:
            if move.follower.grammar.quick:
                move.run()
            else:  # no longer
                with contextlib.suppress(RuntimeError):  # the engine is ending
                    self._slow.submit(move.run)

    def _start(self, request: AddRequest, future: Future[Grammar], vocab_size: int) -> ErrorInfo | None:
        del self._compiling[request.id]
        try:
            grammar = future.result()
            matcher, mask = grammar.start(), grammar.first
            ending = [id for id in request.params.ending_ids() if id < vocab_size]
            if grammar.may_be_empty:
                mask = mask.clone()
                mask[ending] = True
            self._followers[request.id] = Follower(grammar, matcher, ending, mask)
        except Exception as error:  # a grammar can only ever fail its own request
            return _info(error, "compiling")
        return None


def _info(error: Exception, doing: str) -> ErrorInfo:
    return (error if isinstance(error, MotetError) else MotetError(f"{doing} the grammar failed: {error}")).info()
