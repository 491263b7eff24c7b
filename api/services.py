"""The services of one API process, which the worker creates and the routes use."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import version

from motet.api.adapters.registry import AdapterRegistry, ServedAdapter
from motet.api.grammar_checker import GrammarChecker
from motet.api.http.caller import Caller
from motet.api.http.drain import Drain
from motet.api.storage.database import Database
from motet.api.tokenising import Tokenising
from motet.core.blocking_calls import BlockingCalls
from motet.core.errors import Unavailable
from motet.core.model_source import ModelInfo
from motet.core.plugin_registry import PluginRegistry
from motet.core.settings import Settings
from motet.engine.client.engine_client import EngineClient
from motet.engine.client.template_renderer import TemplateRenderer
from motet.engine.client.tokenizer import ModelTokenizer


@cache
def _fingerprint(model_name: str, tokenizer: str) -> str:
    facts = "\n".join((version("motet"), model_name, tokenizer))
    return "fp_" + hashlib.sha256(facts.encode()).hexdigest()[:12]


@dataclass
class Services:
    """The services of one API process."""

    settings: Settings
    tokenizer: ModelTokenizer
    engine: EngineClient
    adapters: AdapterRegistry
    renderer: TemplateRenderer
    plugins: PluginRegistry
    model_name: str
    database: Database
    drain: Drain = field(default_factory=Drain)
    grammars: GrammarChecker = field(default_factory=GrammarChecker)
    templates: BlockingCalls = field(default_factory=lambda: BlockingCalls("chat-templates", per_key=4))
    tokenising: Tokenising = field(default_factory=Tokenising)
    flow: str = ""  # the caller's place in queues; `for_request` sets it
    started: int = field(default_factory=lambda: int(time.time()))

    def model(self) -> ModelInfo:
        """The loaded model. Raises Unavailable with the reason while there is none or the server shuts down."""
        self.drain.check()
        if not self.engine.ready or self.engine.model is None:
            raise Unavailable(self.engine.reason or "the model is still being loaded; try again in a moment")
        return self.engine.model

    def for_request(self, adapter: ServedAdapter | None, caller: Caller) -> Services:
        """The same services with the adapter's tokenizer and the caller's flow.

        The adapter's prompts, stop strings and answers use its own tokens. Raises AdapterRefused if these do not fit
        the base's vocabulary.
        """
        tokens = adapter.prepared.tokens if adapter else None
        tokenizer = self.tokenizer.base.for_adapter(tokens) if tokens else self.tokenizer
        return replace(self, tokenizer=tokenizer, flow=caller.flow)

    @property
    def fingerprint(self) -> str:
        """`system_fingerprint`: changes only with the version, base model or its tokenizer; not with the adapter."""
        return _fingerprint(self.model_name, self.tokenizer.base.fingerprint)
