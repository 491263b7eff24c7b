"""Rank 0's loop: takes requests in, schedules, runs steps, samples, and sends tokens out. Decides for all ranks."""

from __future__ import annotations

import time

from motet.core.errors import Conflict, ErrorInfo, InvalidRequest, MotetError, Overloaded, Unavailable
from motet.core.heartbeat import Heartbeat
from motet.core.messages import (
    AbortRequest,
    AddRequest,
    CancelGroup,
    Embedding,
    EngineStats,
    FinishReason,
    GetAdapterUse,
    GetStats,
    GroupCancelled,
    Hello,
    Ready,
    RegisterAdapter,
    SequenceFailure,
    ToEngine,
    TokenEvent,
    TokenEvents,
)
from motet.core.models import ModelInfo
from motet.engine.distributed.transport import EngineSockets
from motet.engine.grammars import Grammars
from motet.engine.lora.adapter_installer import Installer
from motet.engine.model_runner import ModelRunner
from motet.engine.prompt_results import PromptResults
from motet.engine.reporter import Reporter
from motet.engine.sampling.grammar import GrammarCompiler
from motet.engine.sampling.sampler import SampledToken, Sampler
from motet.engine.schedule.batch import Step
from motet.engine.schedule.plan import InstallAdapter, InstallResult, Shutdown
from motet.engine.schedule.scheduler import Scheduler
from motet.engine.schedule.sequence import Sequence

IDLE_WAIT, INSTALL_WAIT = 200, 2
"""Milliseconds to wait for messages when there is nothing to do, and while an adapter or a grammar is on its way."""

MAX_WAITING = 4096
"""Sequences that may wait for their turn; more are refused, since they would wait for ever."""

MAX_OWNED = MAX_WAITING // 2
"""Sequences that one key may have here while as many wait."""


class EngineCore:
    """The engine's decisions. `run` returns when `stop` was called or Shutdown is asked for."""

    def __init__(self, runner: ModelRunner, model: ModelInfo, scheduler: Scheduler, sockets: EngineSockets) -> None:
        self.scheduler = scheduler
        self._runner, self._model, self._sockets = runner, model, sockets
        self._installer = Installer(runner.pool, rank=0)
        self._awaiting: dict[str, list[InstallResult]] = {}  # fingerprint -> what the ranks have reported so far
        self._refused: dict[str, ErrorInfo] = {}  # fingerprint -> why it can never be placed here
        self._sampler = Sampler(model.vocab_size)
        self._sampler.warm_up()
        self._grammars = Grammars(GrammarCompiler(runner.directory, model.vocab_size, model.eos_token_ids))
        self._prompts = PromptResults()
        self._reporter = Reporter(scheduler)
        self._prompt_tokens = self._generated_tokens = 0
        self._stopping = False
        self.heartbeat: Heartbeat | None = None

    def run(self) -> None:
        """Loop until told to stop."""
        while not self._stopping:
            if self.heartbeat is not None:
                self.heartbeat.beat()
            self.turn()
        self._sockets.broadcast(Shutdown())
        self._grammars.close()

    def stop(self) -> None:
        """Leave `run` after the current turn."""
        self._stopping = True

    def turn(self) -> None:
        """Take in what has arrived and run one step, if anything can run; else wait a moment for messages."""
        for client, message in self._sockets.from_clients():
            self._handle(client, message)
        for report in [*self._installer.finish(), *self._sockets.from_ranks()]:
            self._installed(report)
        self._take_from_grammars()
        now = time.monotonic()
        self._reporter.summary(now, self._prompt_tokens, self._generated_tokens)
        step = self.scheduler.schedule(now)
        commands = self.scheduler.take_commands()
        if commands:
            self._reporter.moves(commands)
        for command in commands:
            self._sockets.broadcast(command)
            if isinstance(command, InstallAdapter):
                self._awaiting[command.fingerprint] = []
                self._installer.start(command)
            else:
                self._runner.pool.clear(command.slot)
        if step is not None:
            self._run(step)
        else:
            self._sockets.wait(INSTALL_WAIT if self._awaiting or self._grammars.busy else IDLE_WAIT)

    def _handle(self, client: bytes, message: ToEngine) -> None:
        match message:
            case Hello():
                self._sockets.send(client, Ready(self.scheduler.engine_id, self._model))
            case AddRequest():
                self._submit(client, message)
            case AbortRequest():
                self._end(message.id)
            case CancelGroup():
                self._sockets.send(client, GroupCancelled(message.group, self._cancel(message.group)))
            case RegisterAdapter():
                try:
                    self.scheduler.register(message.adapter)
                except MotetError as error:
                    self._refused[message.adapter.fingerprint] = error.info()
            case GetStats():
                self._sockets.send(client, self._stats())
            case GetAdapterUse():
                self._sockets.send(client, self._reporter.adapter_use())

    def _submit(self, client: bytes, request: AddRequest) -> None:
        error = self._objection(request)
        if error is not None:
            self._sockets.send(client, SequenceFailure(request.id, error))
            return
        self._reporter.request(request)
        if request.grammar is not None:
            self._grammars.compile(request, client)
        else:
            self.scheduler.add(request, client, time.monotonic())

    def _crowd(self, owner: str) -> str | None:
        """Why no more may wait, if so. Who has a key leaves half of the places to others."""
        waiting = len(self.scheduler.waiting) + self._grammars.compiling
        if waiting >= MAX_WAITING:
            return f"{MAX_WAITING} sequences are waiting already"
        if owner and waiting >= MAX_OWNED <= self.scheduler.turns.counts[owner]:
            return f"{MAX_OWNED} sequences of this key run or wait already"
        return None

    def _objection(self, request: AddRequest) -> ErrorInfo | None:
        """Why the engine cannot take a request, if so: what is let in must not be able to fail a step."""
        size, context = self._model.vocab_size, self._model.max_context
        if request.adapter in self._refused:
            return self._refused[request.adapter]
        if request.adapter is not None and not self.scheduler.is_registered(request.adapter):
            return Unavailable("the adapter is not registered with the engine; try again", param="model").info()
        if (crowd := self._crowd(request.owner)) is not None:
            return Overloaded(f"{crowd}; try again later").info()
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
        compiling = self._grammars.in_group(group)
        for request, client in compiling:
            self._grammars.forget(request.id)
            self._sockets.send(client, SequenceFailure(request.id, error))
        sequences = self.scheduler.in_group(group)
        for sequence in sequences:
            self._fail(sequence, error)
        return len(compiling) + len(sequences)

    def _take_from_grammars(self) -> None:
        """Queue the requests whose grammars are compiled, and tell the tokens that grammars have taken."""
        for request, client, wrong in self._grammars.compiled(self._model.vocab_size):
            error = wrong or self._objection(request)  # its adapter may have been forgotten meanwhile
            if error is not None:
                self._grammars.forget(request.id)
                self._sockets.send(client, SequenceFailure(request.id, error))
            else:
                self.scheduler.add(request, client, time.monotonic())
        told: list[tuple[Sequence, SampledToken, bool]] = []
        for move in self._grammars.taken():
            if move.follower.error is not None:
                self._fail(move.sequence, move.follower.error)
            else:
                told.append((move.sequence, move.choice, move.follower.complete))
        self._tell(told)

    def _installed(self, report: InstallResult) -> None:
        """Keep a rank's report; once all have reported the adapter is ready, or its waiting requests fail."""
        reports = self._awaiting[report.fingerprint]
        reports.append(report)
        if len(reports) < self._runner.group.size:
            return
        del self._awaiting[report.fingerprint]
        failed = [r for r in reports if r.error]
        self._reporter.installed(report.fingerprint, f"{failed[0].error} on rank {failed[0].rank}" if failed else "")
        if not failed:
            self.scheduler.slots.mark_ready(report.fingerprint)
            return
        self.scheduler.slots.remove(report.fingerprint)
        error = Unavailable("the adapter could not be installed; try again", param="model", code="adapter_failed")
        for sequence in self.scheduler.waiting_for_adapter(report.fingerprint):
            self._fail(sequence, error.info())

    def _run(self, step: Step) -> None:
        self._sockets.broadcast(step.plan)
        output = self._runner.execute(step.plan)
        self._prompts.add(step, output)
        self._prompt_tokens += sum(len(s.tokens) for s in step.plan.sequences if not s.sample or len(s.tokens) > 1)
        for sequence in step.sequences:
            if sequence.request.pooling is not None and not sequence.num_pending_tokens:
                self._sockets.send(sequence.client, Embedding(sequence.id, self._prompts.take_vector(sequence)))
                self._end(sequence.id)
        if not step.rows:
            return
        assert output.logits is not None, "rank 0 has the logits"
        choices = self._sampler(output.logits, step.rows, self._grammars.masks(step.rows))
        self._generated_tokens += len(choices)
        tokens = [choice.token for choice in choices]
        self._runner.share(tokens, len(tokens))
        self.scheduler.record_samples(step, tokens)
        told: list[tuple[Sequence, SampledToken, bool]] = []
        to_take: list[tuple[Sequence, SampledToken, bool]] = []
        for sequence, choice in zip(step.rows, choices, strict=True):
            ends = choice.token in sequence.ending_ids
            if self._grammars.follows(sequence.id) and not ends:
                to_take.append((sequence, choice, self._full(sequence)))
            else:
                told.append((sequence, choice, ends))
        self._grammars.take(to_take)
        self._tell(told)

    def _tell(self, told: list[tuple[Sequence, SampledToken, bool]]) -> None:
        """Send out sampled tokens, each with whether the text is complete with it."""
        events: dict[bytes, list[TokenEvent]] = {}
        for sequence, choice, complete in told:
            event = self._event(sequence, choice, complete)
            events.setdefault(sequence.client, []).append(event)
            if event.finish:
                self._end(sequence.id)
        for client, batch in events.items():
            if not self._sockets.send(client, TokenEvents(tuple(batch))):
                for sequence in [s for s in self.scheduler.sequences() if s.client == client]:
                    self._end(sequence.id)

    def _full(self, sequence: Sequence) -> bool:
        """Whether a sequence may not become longer."""
        longest = sequence.request.params.max_tokens
        return len(sequence.output) >= longest or sequence.num_tokens >= self._model.max_context

    def _event(self, sequence: Sequence, choice: SampledToken, complete: bool) -> TokenEvent:
        """What to tell about a sampled token."""
        finish: FinishReason | None = "stop" if complete else "length" if self._full(sequence) else None
        stop_id = choice.token if choice.token in sequence.ending_ids else None
        scores = self._prompts.take_scores(sequence)
        assert sequence.start_time is not None, "it has just run"
        waited = sequence.start_time - sequence.arrival_time if len(sequence.output) == 1 else 0.0
        return TokenEvent(sequence.id, choice.token, choice.logprob, choice.top, finish, stop_id, waited, scores)

    def _fail(self, sequence: Sequence, error: ErrorInfo) -> None:
        self._sockets.send(sequence.client, SequenceFailure(sequence.id, error))
        self._end(sequence.id)

    def _end(self, id: str) -> None:
        """Forget a sequence and everything that is kept for it."""
        self.scheduler.finish(id)
        self._sampler.forget(id)
        self._grammars.forget(id)
        self._prompts.forget(id)

    def _stats(self) -> EngineStats:
        resident, pinned = self.scheduler.slots.counts()
        return EngineStats(
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting) + self._grammars.compiling,
            blocks_free=self.scheduler.blocks.free,
            blocks_total=self.scheduler.blocks.total,
            adapters_resident=resident,
            adapters_pinned=pinned,
            steps=self.scheduler.steps,
            preemptions=self.scheduler.preemptions,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            block_size=self.scheduler.blocks.block_size,
            adapter_slots=self.scheduler.slots.total,
            adapter_bytes=sum(adapter.bytes for adapter in self.scheduler.slots.residents()),
            adapter_evictions=self.scheduler.slots.evictions,
        )
