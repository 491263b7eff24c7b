"""An API process with a scripted engine, for behaviour that the real engine does not show on demand.

Everything but the engine and the loader is real: tokenizer, template renderer, plugins, adapter registry. The tokenizer
has one token per byte, so that strings and counts are easy to compare.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from motet.api.adapters.local_registry import LocalRegistry
from motet.api.adapters.names import NameRules
from motet.api.services import Services
from motet.api.storage.database import Database
from motet.core.adapter_source import AdapterListing, AdapterRef, AdapterSource, ResolvedAdapter
from motet.core.errors import AdapterRefused, Forbidden, MotetError, NotFound, Unavailable
from motet.core.messages import (
    AdapterPart,
    AdapterUse,
    AddRequest,
    EngineStats,
    PreparedAdapter,
    PromptLogprob,
    TokenEvent,
)
from motet.core.model_source import ModelInfo
from motet.core.plugin_registry import PluginRegistry
from motet.core.settings import Settings
from motet.engine.adapters.added_tokens import BaseTokens, read_added_tokens
from motet.engine.client.template_renderer import TemplateRenderer
from motet.engine.client.tokenizer import ModelTokenizer

CONTEXT = 2048
PLUGINS = ("chat_templates", "output_formats", "tool_parsers.hermes", "tool_parsers.llama3_json")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_model(directory: Path, template: str | None = TEMPLATE) -> Path:
    """A model directory (no weights) whose tokenizer has one token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    if template is not None:
        (directory / "chat_template.jinja").write_text(template)
    return directory


Script = Callable[[AddRequest], str]


@dataclass
class ScriptedEngine:
    """Generates `script(request)`, `at_once` bytes per step; records its requests and those that are running."""

    text: ModelTokenizer
    model: ModelInfo | None
    script: Script = lambda request: "Hello!"
    step_seconds: float = 0.0
    at_once: int = 1
    fail_after: int | None = None
    failure: MotetError | Exception = field(default_factory=lambda: MotetError("scripted"))
    ready: bool = True
    reason: str = ""
    submits: list[AddRequest] = field(default_factory=list)
    running: set[str] = field(default_factory=set)
    registered: list[PreparedAdapter] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    async def register(self, adapter: PreparedAdapter) -> None:
        self.registered.append(adapter)

    async def stats(self) -> EngineStats:
        if not self.ready:
            raise Unavailable(self.reason)
        running = len(self.running)
        return EngineStats(running, 0, 9, 9, 0, 0, 0, 0)

    async def adapter_use(self) -> AdapterUse:
        if not self.ready:
            raise Unavailable(self.reason)
        names = dict.fromkeys(submit.model for submit in self.submits if submit.adapter)
        return AdapterUse(tuple(names), ())

    async def generate(self, request: AddRequest) -> AsyncGenerator[tuple[TokenEvent, ...], None]:
        self.submits.append(request)
        self.running.add(request.id)
        try:
            events: list[TokenEvent] = []
            async for event in self._events(request):
                events.append(event)
                if len(events) == self.at_once or event.finish is not None:
                    yield tuple(events)
                    events.clear()
        finally:
            self.running.discard(request.id)

    async def _events(self, request: AddRequest) -> AsyncIterator[TokenEvent]:
        eos = self.text.eos_token_ids[0]
        tokens = [*self.text.encode(self.script(request), add_special_tokens=False), eos]
        for count, token in enumerate(tokens, start=1):
            await asyncio.sleep(self.step_seconds)
            if self.fail_after is not None and count > self.fail_after:
                raise self.failure
            ended = token == eos
            last = ended or count == request.params.max_tokens
            logprob, top = None, ()
            if request.params.logprobs is not None:
                logprob = -0.5
                top = tuple((token + n, -0.5 - n) for n in range(request.params.logprobs))
            finish = ("stop" if ended else "length") if last else None
            scores = self._scores(request) if count == 1 else ()
            yield TokenEvent(request.id, token, logprob, top, finish, token if ended else None, 0.0, scores)
            if last:
                return

    def _scores(self, request: AddRequest) -> tuple[PromptLogprob, ...]:
        count = request.params.prompt_logprobs
        if count is None:
            return ()
        tops = tuple((token, -0.25) for token in range(count))
        return tuple(
            PromptLogprob(token, -0.25 if n else None, tops if n else ()) for n, token in enumerate(request.prompt)
        )

    async def embed(self, request: AddRequest) -> tuple[float, ...]:
        """The prompt's length, its first and its last id, and 1 for an adapter."""
        self.submits.append(request)
        self.running.add(request.id)
        try:
            await asyncio.sleep(self.step_seconds)
            if self.fail_after == 0:
                raise self.failure
            has = 1.0 if request.adapter else 0.0
            return (float(len(request.prompt)), float(request.prompt[0]), float(request.prompt[-1]), has)
        finally:
            self.running.discard(request.id)

    async def cancel(self, group: str) -> int:
        """Records the call and does nothing else."""
        self.cancelled.append(group)
        return sum(submit.id in self.running for submit in self.submits if submit.belongs_to(group))


class ShelfSource(AdapterSource):
    """Adapters `one` and `two`; `secret` requires the token `hf_good`; the loader refuses `broken`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tokens: list[str | None] = []

    async def resolve(self, ref: AdapterRef, token: str | None) -> ResolvedAdapter:
        self.tokens.append(token)
        if ref.id not in ("one", "two", "secret", "broken", "org/name"):
            raise NotFound(f"The model {str(ref)!r} does not exist", param="model")
        if ref.id == "secret" and token != "hf_good":
            raise Forbidden("this token may not use shelf:secret", param="model")
        return ResolvedAdapter(ref, "r1")

    async def fetch(self, adapter: ResolvedAdapter, token: str | None, into: Path) -> Path:
        directory = self.root / adapter.ref.id.replace("/", "--")
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    async def listing(self) -> Sequence[AdapterListing]:
        return [AdapterListing(AdapterRef("shelf", "one"), "one"), AdapterListing(AdapterRef("shelf", "two"))]


@dataclass
class ScriptedLoader:
    """Prepares every directory but `broken`; the fingerprint of a merge contains its parts and their weights.

    Tokenizers are read as the real loader reads them, for the model in `base` that has `vocab_size` tokens.
    """

    base: BaseTokens
    vocab_size: int

    async def prepare(self, parts: Sequence[AdapterPart]) -> PreparedAdapter:
        names = [Path(part.directory).name for part in parts]
        if "broken" in names:
            raise AdapterRefused("adapter_config.json: use_qalora is not supported", param="model")
        weighted = [n if p.weight == 1 else f"{n}*{p.weight:g}" for n, p in zip(names, parts, strict=True)]
        name = "+".join(weighted)
        tokens = read_added_tokens(Path(parts[0].directory), self.base, self.vocab_size)
        return PreparedAdapter(name, f"print-of-{name}", (), (), 0, eos_token_ids=(7,), tokens=tokens)


@dataclass
class Scripted:
    """The services of one API process, and its scripted parts."""

    services: Services
    engine: ScriptedEngine
    shelf: ShelfSource


@asynccontextmanager
async def scripted_api(
    root: Path, settings: Settings | None = None, template: str | None = TEMPLATE
) -> AsyncIterator[Scripted]:
    """A whole API process with a scripted engine; `root` is an empty directory."""
    (root / "model").mkdir(parents=True)
    directory = write_model(root / "model", template)
    text = ModelTokenizer(directory)
    model = ModelInfo("tiny", "Tiny", str(directory), text.vocab_size, CONTEXT, "float32", 1, (), hidden_size=4)
    engine = ScriptedEngine(text, model)
    plugins = PluginRegistry.load(map("motet.plugins.{}".format, PLUGINS), installed=False)
    shelf = ShelfSource(root / "shelf")
    for name in ("shelf", "hub"):
        plugins.adapter_sources.adder("tests")(name, shelf)
    settings = settings or Settings()
    names = NameRules("tiny", "shelf", root / "cache", settings.model_alias)
    loader = ScriptedLoader(BaseTokens(directory), text.vocab_size)
    registry = LocalRegistry(plugins.adapter_sources.items, loader, names)
    renderer = TemplateRenderer()
    services = Services(
        settings=settings,
        tokenizer=text,
        engine=engine,  # type: ignore[arg-type]
        adapters=registry,
        renderer=renderer,
        plugins=plugins,
        model_name="tiny",
        database=Database(root / "data", settings.size("max_files")),
    )
    try:
        yield Scripted(services, engine, shelf)
    finally:
        await renderer.close()
        await services.grammars.close()
        await registry.close()
        await services.database.close()
