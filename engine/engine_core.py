"""Rank 0's loop: receives requests, schedules, runs steps, samples, and sends tokens. Decides for all ranks."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from motet.core import error_codes
from motet.core.errors import Conflict, ErrorInfo, InvalidRequest, MotetError, Overloaded, Unavailable
from motet.core.heartbeat import Heartbeat
from motet.core.messages import (
    AbortRequest,
    AddRequest,
    CancelGroup,
    Embedding,
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
from motet.core.model_source import ModelInfo
from motet.engine.decode_graphs import Recorder
from motet.engine.distributed.transport import EngineSockets
from motet.engine.lora.adapter_installer import Installer
from motet.engine.model_runner import ModelRunner, StepOutput
from motet.engine.sampling.grammar_masks import GrammarCompiler
from motet.engine.sampling.prompt_outputs import PromptOutputs
from motet.engine.sampling.request_grammars import RequestGrammars
from motet.engine.sampling.sampler import SampledRows, SampledToken, Sampler
from motet.engine.schedule.batch import Step
from motet.engine.schedule.plan import InstallAdapter, InstallResult, Shutdown, StepPlan
from motet.engine.schedule.scheduler import Scheduler
from motet.engine.schedule.sequence import Sequence
from motet.engine.stat_logger import StatLogger

IDLE_WAIT, INSTALL_WAIT = 200, 2
"""Milliseconds to wait for messages: when nothing can run, and while an adapter is installed or a grammar computed."""

MAX_WAITING = 4096
"""Sequences that may wait; more are refused, since they would wait too long."""

MAX_PER_OWNER = MAX_WAITING // 2
"""Sequences that one API key may have while this many sequences wait."""


@dataclass(frozen=True)
class LaunchedStep:
    """A step that the device has begun; its results have not been read."""

    step: Step
    output: StepOutput
    sampled: SampledRows | None


class EngineCore:
    """The engine's decisions. `run` returns after `stop` was called.

    With `overlap`, the next step is scheduled and launched before the tokens of the last one are read, so that the
    device does not wait for the host. Then sequences are found to have ended one step late, and their rows of that
    step are dropped.
    """

    def __init__(
        self, runner: ModelRunner, model: ModelInfo, scheduler: Scheduler, sockets: EngineSockets, overlap: bool
    ) -> None:
        self.scheduler = scheduler
        self._runner, self._model, self._sockets = runner, model, sockets
        self._installer = Installer(runner.pool, tp_rank=0)
        self._install_results: dict[str, list[InstallResult]] = {}  # by fingerprint, until every rank has answered
        self._refused_adapters: dict[str, ErrorInfo] = {}  # by fingerprint: those that do not fit into the pool
        self._sampler = Sampler(model.vocab_size, runner.device)
        self._sampler.warm_up(runner.staging)
        self._grammars = RequestGrammars(GrammarCompiler(runner.directory, model.vocab_size, model.eos_token_ids))
        self._prompt_outputs = PromptOutputs()
        self._stats = StatLogger(scheduler)
        self._overlap = overlap
        self._launched: deque[LaunchedStep] = deque()
        self._stopping = False
        self.heartbeat: Heartbeat | None = None

    def record_draws(self, recorder: Recorder) -> None:
        """Record the draw from the logits of every recorded step."""
        for rows, logits in self._runner.graphs.outputs():
            self._runner.stage(StepPlan("", 0, (), ()), rows)
            self._sampler.record(logits, self._runner.staging, recorder)

    def run(self) -> None:
        """Run steps until `stop` is called; then end the other ranks."""
        while not self._stopping:
            if self.heartbeat is not None:
                self.heartbeat.beat()
            self.run_once()
        self._sockets.broadcast(Shutdown())
        self._grammars.close()

    def stop(self) -> None:
        """Leave `run` after the current step."""
        self._stopping = True

    def run_once(self) -> None:
        """Handle the messages that have arrived, and run one step; if nothing can run, wait a moment for messages."""
        for client, message in self._sockets.from_clients():
            self._handle(client, message)
        for result in [*self._installer.finish(), *self._sockets.from_ranks()]:
            self._record_install(result)
        self._add_compiled()
        self._send_advanced()
        now = time.monotonic()
        self._stats.log_summary(now)
        step = self.scheduler.schedule(now)
        self._change_slots()
        if step is not None:
            self._launched.append(self._launch(step))
        if self._launched and (step is None or len(self._launched) > self._overlap):
            self._finish(self._launched.popleft())
        elif step is None:
            self._sockets.wait(INSTALL_WAIT if self._install_results or self._grammars.busy else IDLE_WAIT)

    def _handle(self, client: bytes, message: ToEngine) -> None:
        match message:
            case Hello():
                self._sockets.send(client, Ready(self.scheduler.engine_id, self._model))
            case AddRequest():
                self._add(client, message)
            case AbortRequest():
                self._end(message.id)
            case CancelGroup():
                self._sockets.send(client, GroupCancelled(message.group, self._cancel(message.group)))
            case RegisterAdapter():
                try:
                    self.scheduler.register(message.adapter)
                except MotetError as error:
                    self._refused_adapters[message.adapter.fingerprint] = error.info()
            case GetStats():
                self._sockets.send(client, self._stats.engine_stats(self._grammars.num_compiling))
            case GetAdapterUse():
                self._sockets.send(client, self._stats.adapter_use())

    def _add(self, client: bytes, request: AddRequest) -> None:
        """Queue a request, after compiling its grammar; or refuse it."""
        error = self._refusal(request)
        if error is not None:
            self._sockets.send(client, SequenceFailure(request.id, error))
            return
        self._stats.record_name(request)
        if request.grammar is not None:
            self._grammars.compile(request, client)
        else:
            self.scheduler.add(request, client, time.monotonic())

    def _exceeded_limit(self, owner: str) -> str | None:
        """The limit on waiting sequences that another one would exceed. One API key leaves half of it to others."""
        waiting = len(self.scheduler.waiting) + self._grammars.num_compiling
        if waiting >= MAX_WAITING:
            return f"{MAX_WAITING} sequences are already waiting (the maximum)"
        if owner and waiting >= MAX_PER_OWNER <= self.scheduler.turns.counts[owner]:
            return f"{MAX_PER_OWNER} sequences of this API key are already running or waiting (the maximum)"
        return None

    def _refusal(self, request: AddRequest) -> ErrorInfo | None:
        """Why the engine refuses a request, if it does. A request that passes cannot make a step fail."""
        vocab_size, max_context = self._model.vocab_size, self._model.max_context
        if request.adapter in self._refused_adapters:
            return self._refused_adapters[request.adapter]
        if request.adapter is not None and not self.scheduler.is_registered(request.adapter):
            return Unavailable("the adapter is not registered with the engine; try again", param="model").info()
        if (limit := self._exceeded_limit(request.owner)) is not None:
            return Overloaded(f"{limit}; try again later").info()
        if not request.prompt or len(request.prompt) >= max_context:
            count = len(request.prompt)
            return InvalidRequest(
                f"the prompt has {count} tokens; it must have 1 to {max_context - 1}", param="prompt"
            ).info()
        for field, ids in (("prompt", request.prompt), ("logit_bias", request.params.logit_bias)):
            if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
                return InvalidRequest(f"token ids must be in 0..{vocab_size - 1}", param=field).info()
        return None

    def _cancel(self, group: str) -> int:
        """End all sequences of a group; returns how many there were."""
        error = Conflict("the request was cancelled", code=error_codes.REQUEST_CANCELLED).info()
        compiling = self._grammars.compiling_in_group(group)
        for request, client in compiling:
            self._grammars.forget(request.id)
            self._sockets.send(client, SequenceFailure(request.id, error))
        sequences = self.scheduler.in_group(group)
        for sequence in sequences:
            self._fail(sequence, error)
        return len(compiling) + len(sequences)

    def _add_compiled(self) -> None:
        """Queue the requests whose grammars have been compiled."""
        for request, client, compile_error in self._grammars.take_compiled(self._model.vocab_size):
            error = compile_error or self._refusal(request)  # its adapter may have been forgotten meanwhile
            if error is not None:
                self._grammars.forget(request.id)
                self._sockets.send(client, SequenceFailure(request.id, error))
            else:
                self.scheduler.add(request, client, time.monotonic())

    def _send_advanced(self) -> None:
        """Send the tokens that grammars have accepted."""
        accepted: list[tuple[Sequence, SampledToken, bool]] = []
        for pending in self._grammars.take_advanced():
            if pending.state.error is not None:
                self._fail(pending.sequence, pending.state.error)
            else:
                accepted.append((pending.sequence, pending.sampled, pending.state.complete))
        self._send_tokens(accepted)

    def _change_slots(self) -> None:
        """Clear and fill adapter slots, on all ranks, as the scheduler has decided."""
        commands = self.scheduler.take_commands()
        self._stats.record_commands(commands)
        for command in commands:
            self._sockets.broadcast(command)
            if isinstance(command, InstallAdapter):
                self._install_results[command.fingerprint] = []
                self._installer.start(command)
            else:
                self._runner.pool.clear(command.slot)

    def _record_install(self, result: InstallResult) -> None:
        """Record a rank's result. After the last one the adapter is ready, or its waiting sequences fail."""
        results = self._install_results[result.fingerprint]
        results.append(result)
        if len(results) < self._runner.group.tp_size:
            return
        del self._install_results[result.fingerprint]
        failed = [r for r in results if r.error]
        message = f"{failed[0].error} on rank {failed[0].tp_rank}" if failed else ""
        self._stats.record_install(result.fingerprint, message)
        if not failed:
            self.scheduler.slots.mark_ready(result.fingerprint)
            return
        self.scheduler.slots.remove(result.fingerprint)
        error = Unavailable(
            "the adapter could not be installed; try again", param="model", code=error_codes.ADAPTER_FAILED
        )
        for sequence in self.scheduler.waiting_for_adapter(result.fingerprint):
            self._fail(sequence, error.info())

    def _launch(self, step: Step) -> LaunchedStep:
        """Begin a step on all ranks, and the sampling of a token for each of its rows."""
        self._sockets.broadcast(step.plan)
        staged = self._runner.stage(step.plan)
        batch = self._sampler.stage(step.rows, self._runner.staging, staged.graph_rows)
        output = self._runner.execute(staged)
        sampled = None
        if output.logits is not None:
            sampled = self._sampler(output.logits, batch, self._grammars.masks(step.rows))
            self._runner.store_samples(len(step.rows), sampled.ids)
        self._grammars.block(step.rows)
        return LaunchedStep(step, output, sampled)

    def _finish(self, launched: LaunchedStep) -> None:
        """Read a step's results, and send them."""
        step, output = launched.step, launched.output
        self._prompt_outputs.add(step, output.prompt_logprobs, output.hidden_states)
        self._stats.prompt_tokens += sum(
            len(s.tokens) for s in step.plan.sequences if not s.sample or len(s.tokens) > 1
        )
        for sequence, plan in zip(step.sequences, step.plan.sequences, strict=True):
            if plan.pooling and plan.start + len(plan.tokens) == len(sequence.request.prompt):
                self._send_vector(sequence)
            if not self.scheduler.has(sequence):  # it has ended since the step was launched
                self._prompt_outputs.forget(sequence.id)
        if launched.sampled is None:
            return
        samples = launched.sampled.read()
        self._stats.generated_tokens += len(samples)
        sequences = self.scheduler.record_samples(step, [sampled.token for sampled in samples])
        pairs = zip(sequences, samples, strict=True)
        self._pass_on((sequence, sampled) for sequence, sampled in pairs if sequence is not None)

    def _send_vector(self, sequence: Sequence) -> None:
        """Send the pooled vector of a prompt that has been computed; the sequence ends."""
        if self.scheduler.has(sequence):
            vector = self._prompt_outputs.take_vector(sequence)
            self._sockets.send(sequence.client, Embedding(sequence.id, vector))
            self._end(sequence.id)

    def _pass_on(self, samples: Iterable[tuple[Sequence, SampledToken]]) -> None:
        """Send sampled tokens, or pass them to their grammars, which have to accept them first."""
        free: list[tuple[Sequence, SampledToken, bool]] = []
        constrained: list[tuple[Sequence, SampledToken, bool]] = []
        for sequence, sampled in samples:
            ends = sampled.token in sequence.ending_ids
            if self._grammars.has(sequence.id) and not ends:
                constrained.append((sequence, sampled, len(sequence.output) >= sequence.max_output))
            else:
                free.append((sequence, sampled, ends))
        self._grammars.advance(constrained)
        self._send_tokens(free)

    def _send_tokens(self, samples: list[tuple[Sequence, SampledToken, bool]]) -> None:
        """Send tokens to their clients, each with whether it completes the text; end the sequences that finish."""
        events: dict[bytes, list[TokenEvent]] = {}
        for sequence, sampled, complete in samples:
            event = self._event(sequence, sampled, complete)
            events.setdefault(sequence.client, []).append(event)
            if event.finish:
                self._end(sequence.id)
        for client, batch in events.items():
            if not self._sockets.send(client, TokenEvents(tuple(batch))):  # the client is gone
                for sequence in [s for s in self.scheduler.sequences() if s.client == client]:
                    self._end(sequence.id)

    def _event(self, sequence: Sequence, sampled: SampledToken, complete: bool) -> TokenEvent:
        at_limit = len(sequence.output) >= sequence.max_output
        finish: FinishReason | None = "stop" if complete else "length" if at_limit else None
        stop_id = sampled.token if sampled.token in sequence.ending_ids else None
        prompt_logprobs = self._prompt_outputs.take_logprobs(sequence)
        assert sequence.start_time is not None, "the sequence has run"
        queue_seconds = sequence.start_time - sequence.arrival_time if len(sequence.output) == 1 else 0.0
        return TokenEvent(
            id=sequence.id,
            token=sampled.token,
            logprob=sampled.logprob,
            top=sampled.top,
            finish=finish,
            stop_id=stop_id,
            queue_seconds=queue_seconds,
            prompt_logprobs=prompt_logprobs,
        )

    def _fail(self, sequence: Sequence, error: ErrorInfo) -> None:
        self._sockets.send(sequence.client, SequenceFailure(sequence.id, error))
        self._end(sequence.id)

    def _end(self, id: str) -> None:
        """End a sequence, and forget its state everywhere."""
        self.scheduler.finish(id)
        self._sampler.forget(id)
        self._grammars.forget(id)
        self._prompt_outputs.forget(id)
