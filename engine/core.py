"""Rank 0's loop: takes requests in, schedules, runs steps, samples, and sends tokens out. Decides for all ranks."""

from __future__ import annotations

import time
from concurrent.futures import Future
from pathlib import Path

from loguru import logger
from torch import Tensor

from motet.core.errors import Conflict, ErrorInfo, InvalidRequest, MotetError, Overloaded, Unavailable
from motet.core.messages import (
    AskStats,
    Cancel,
    Cancelled,
    Embedded,
    EngineStats,
    FinishReason,
    Hello,
    Ready,
    RegisterAdapter,
    SequenceFailure,
    Stop,
    Submit,
    ToEngine,
    TokenEvent,
    Tokens,
)
from motet.core.models import ModelInfo
from motet.engine.installer import Installer
from motet.engine.plan import InstallAdapter, Installed, Shutdown
from motet.engine.prompt_results import PromptResults
from motet.engine.runner import Runner
from motet.engine.sampling.grammar import GrammarCompiler, Matcher
from motet.engine.sampling.sampler import Choice, Sampler
from motet.engine.scheduler import Scheduler
from motet.engine.sequence import Sequence
from motet.engine.step import Step
from motet.engine.transport import LeaderSockets

IDLE_WAIT, INSTALL_WAIT = 200, 2
"""Milliseconds to wait for messages when there is nothing to do, and while an adapter or a grammar is on its way."""

BEAT_SECONDS = 1.0

MAX_WAITING = 4096
"""Sequences that may wait for their turn; more are refused, since they would wait for ever."""


class EngineCore:
    """The engine's decisions. `run` returns when `stop` was called or Shutdown is asked for."""

    def __init__(self, runner: Runner, model: ModelInfo, scheduler: Scheduler, sockets: LeaderSockets) -> None:
        self.scheduler = scheduler
        self._runner, self._model, self._sockets = runner, model, sockets
        self._installer = Installer(runner.pool, rank=0)
        self._awaiting: dict[str, list[Installed]] = {}  # fingerprint -> what the ranks have reported so far
        self._refused: dict[str, ErrorInfo] = {}  # fingerprint -> why it can never be placed here
        self._sampler = Sampler(model.vocab_size)
        self._grammars = GrammarCompiler(runner.directory, model.vocab_size, model.eos_token_ids)
        self._compiling: dict[str, tuple[Submit, bytes, Future[Matcher]]] = {}
        self._matchers: dict[str, Matcher] = {}
        self._prompts = PromptResults()
        self._prompt_tokens = self._generated_tokens = 0
        self._stopping = False
        self.heartbeat: Path | None = None
        self._beaten = 0.0

    def run(self) -> None:
        """Loop until told to stop."""
        while not self._stopping:
            self._beat()
            self.turn()
        self._sockets.broadcast(Shutdown())
        self._grammars.close()

    def stop(self) -> None:
        """Leave `run` after the current turn."""
        self._stopping = True

    def _beat(self) -> None:
        """Show that the loop turns; the supervisor ends an engine that has stopped doing so."""
        if self.heartbeat is not None and (now := time.monotonic()) - self._beaten > BEAT_SECONDS:
            self._beaten = now
            self.heartbeat.touch()

    def turn(self) -> None:
        """Take in what has arrived and run one step, if anything can run; else wait a moment for messages."""
        for client, message in self._sockets.from_clients():
            self._handle(client, message)
        for report in [*self._installer.finish(), *self._sockets.from_ranks()]:
            self._installed(report)
        for id in [id for id, (_, _, future) in self._compiling.items() if future.done()]:
            self._compiled(id)
        step = self.scheduler.schedule(time.monotonic())
        for command in self.scheduler.commands:
            self._sockets.broadcast(command)
            if isinstance(command, InstallAdapter):
                self._awaiting[command.fingerprint] = []
                self._installer.start(command)
            else:
                self._runner.pool.clear(command.slot)
        self.scheduler.commands.clear()
        if step is not None:
            self._run(step)
        else:
            self._sockets.wait(INSTALL_WAIT if self._awaiting or self._compiling else IDLE_WAIT)

    def _handle(self, client: bytes, message: ToEngine) -> None:
        match message:
            case Hello():
                self._sockets.send(client, Ready(self.scheduler.epoch, self._model))
            case Submit():
                self._submit(client, message)
            case Stop():
                self._forget_compiling(message.id)
                self._end(message.id)
            case Cancel():
                self._sockets.send(client, Cancelled(message.group, self._cancel(message.group)))
            case RegisterAdapter():
                try:
                    self.scheduler.register(message.adapter)
                except MotetError as error:
                    self._refused[message.adapter.fingerprint] = error.info()
            case AskStats():
                self._sockets.send(client, self._stats())

    def _submit(self, client: bytes, request: Submit) -> None:
        error = self._objection(request)
        if error is not None:
            self._sockets.send(client, SequenceFailure(request.id, error))
        elif request.grammar is not None:
            self._compiling[request.id] = (request, client, self._grammars.compile(request.grammar))
        else:
            self.scheduler.add(request, client, time.monotonic())

    def _objection(self, request: Submit) -> ErrorInfo | None:
        """Why the engine cannot take a request, if so: what is let in must not be able to fail a step."""
        size, context = self._model.vocab_size, self._model.max_context
        if request.adapter in self._refused:
            return self._refused[request.adapter]
        if request.adapter is not None and not self.scheduler.knows(request.adapter):
            return Unavailable("the adapter is not registered with the engine; try again", param="model").info()
        if len(self.scheduler.waiting) >= MAX_WAITING:
            return Overloaded(f"{MAX_WAITING} sequences are waiting already; try again later").info()
        if not request.prompt or len(request.prompt) >= context:
            has = len(request.prompt)
            return InvalidRequest(
                f"the prompt has {has} tokens; it must have 1 to {context - 1}", param="prompt"
            ).info()
        for field, ids in (("prompt", request.prompt), ("logit_bias", request.params.logit_bias)):
            if ids and not (min(ids) >= 0 and max(ids) < size):
                return InvalidRequest(f"token ids must be in 0..{size - 1}", param=field).info()
        return None

    def _cancel(self, group: str) -> int:
        """End a request's sequences, whoever submitted them; returns how many there were."""
        error = Conflict("the request was cancelled", code="request_cancelled").info()
        compiling = [(r.id, client) for r, client, _ in self._compiling.values() if r.belongs_to(group)]
        for id, client in compiling:
            self._forget_compiling(id)
            self._sockets.send(client, SequenceFailure(id, error))
        sequences = self.scheduler.group(group)
        for sequence in sequences:
            self._fail(sequence, error)
        return len(compiling) + len(sequences)

    def _forget_compiling(self, id: str) -> None:
        if compiling := self._compiling.pop(id, None):
            compiling[2].cancel()

    def _compiled(self, id: str) -> None:
        request, client, future = self._compiling.pop(id)
        try:
            self._matchers[id] = future.result()
        except Exception as error:  # a grammar can only ever fail its own request
            failure = error if isinstance(error, MotetError) else MotetError(f"compiling the grammar failed: {error}")
            self._sockets.send(client, SequenceFailure(id, failure.info()))
        else:
            self.scheduler.add(request, client, time.monotonic())

    def _installed(self, report: Installed) -> None:
        """Keep a rank's report; once all have reported the adapter is ready, or its waiting requests fail."""
        reports = self._awaiting[report.fingerprint]
        reports.append(report)
        if len(reports) < self._runner.group.size:
            return
        del self._awaiting[report.fingerprint]
        failed = [r for r in reports if r.error]
        if not failed:
            self.scheduler.slots.installed(report.fingerprint)
            return
        logger.error("adapter {} failed on rank {}: {}", report.fingerprint, failed[0].rank, failed[0].error)
        self.scheduler.slots.drop(report.fingerprint)
        error = Unavailable("the adapter could not be installed; try again", param="model", code="adapter_failed")
        for sequence in self.scheduler.waiting_for(report.fingerprint):
            self._fail(sequence, error.info())

    def _run(self, step: Step) -> None:
        self._sockets.broadcast(step.plan)
        output = self._runner.execute(step.plan)
        self._prompts.add(step, output)
        self._prompt_tokens += sum(len(s.tokens) for s in step.plan.sequences if not s.sample or len(s.tokens) > 1)
        for sequence in step.sequences:
            if sequence.request.pool is not None and not sequence.pending:
                self._sockets.send(sequence.client, Embedded(sequence.id, self._prompts.take_vector(sequence)))
                self._end(sequence.id)
        if not step.rows:
            return
        assert output.logits is not None, "rank 0 has the logits"
        masks, broken = self._masks(step.rows)
        choices = self._sampler(output.logits, step.rows, masks)
        self._generated_tokens += len(choices)
        for sequence, error in broken:
            self._fail(sequence, error)
        tokens = [choice.token for choice in choices]
        self._runner.share(tokens, len(tokens))
        self.scheduler.sampled(step, tokens)
        events: dict[bytes, list[TokenEvent]] = {}
        for sequence, choice in zip(step.rows, choices, strict=True):
            event = self._event(sequence, choice) if self.scheduler.runs(sequence) else None
            if event is not None:
                events.setdefault(sequence.client, []).append(event)
                if event.finish:
                    self._end(sequence.id)
        for client, batch in events.items():
            if not self._sockets.send(client, Tokens(tuple(batch))):
                for sequence in [s for s in self.scheduler.sequences() if s.client == client]:
                    self._end(sequence.id)

    def _masks(self, rows: list[Sequence]) -> tuple[dict[int, Tensor], list[tuple[Sequence, ErrorInfo]]]:
        """The allowed ids of the rows that follow a grammar, and the rows whose grammar broke."""
        masks: dict[int, Tensor] = {}
        broken: list[tuple[Sequence, ErrorInfo]] = []
        for row, sequence in enumerate(rows):
            if matcher := self._matchers.get(sequence.id):
                try:
                    masks[row] = matcher.allowed()
                except MotetError as error:
                    broken.append((sequence, error.info()))
                    continue
                if matcher.accepting():  # the grammar knows the base's own end only
                    ending = sequence.request.params.ending_ids()
                    masks[row][[id for id in ending if id < self._model.vocab_size]] = True
        return masks, broken

    def _event(self, sequence: Sequence, choice: Choice) -> TokenEvent | None:
        """What to tell about a sampled token; None if its grammar broke and the sequence has failed."""
        params = sequence.request.params
        finish: FinishReason | None = None
        stop_id: int | None = None
        if choice.token in params.ending_ids():
            finish, stop_id = "stop", choice.token
        elif sequence.id in self._matchers:
            matcher = self._matchers[sequence.id]
            try:
                matcher.advance(choice.token)
            except MotetError as error:
                self._fail(sequence, error.info())
                return None
            finish = "stop" if matcher.complete() else None
        if finish is None and (len(sequence.output) >= params.max_tokens or sequence.length >= self._model.max_context):
            finish = "length"
        scores = self._prompts.take_scores(sequence)
        assert sequence.started is not None, "it has just run"
        waited = sequence.started - sequence.arrived if len(sequence.output) == 1 else 0.0
        return TokenEvent(sequence.id, choice.token, choice.logprob, choice.top, finish, stop_id, waited, scores)

    def _fail(self, sequence: Sequence, error: ErrorInfo) -> None:
        self._sockets.send(sequence.client, SequenceFailure(sequence.id, error))
        self._end(sequence.id)

    def _end(self, id: str) -> None:
        """Forget a sequence and everything that is kept for it."""
        self.scheduler.finish(id)
        self._sampler.forget(id)
        self._matchers.pop(id, None)
        self._prompts.forget(id)

    def _stats(self) -> EngineStats:
        resident, pinned = self.scheduler.slots.counts()
        return EngineStats(
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting) + len(self._compiling),
            blocks_free=self.scheduler.blocks.free,
            blocks_total=self.scheduler.blocks.total,
            adapters_resident=resident,
            adapters_pinned=pinned,
            steps=self.scheduler.steps,
            preemptions=self.scheduler.preemptions,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
        )
