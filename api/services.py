"""What the routes work with: the parts of one API process, made by the worker and handed to `create_app`."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib.metadata import version

from motet.api.adapters.adapters import Adapters
from motet.api.adapters.messages import ServedAdapter
from motet.api.grammar_checker import GrammarChecker
from motet.api.http.caller import Caller
from motet.api.http.drain import Drain
from motet.api.storage.database import Database
from motet.api.tokenising import Tokenising
from motet.core.blocking_calls import BlockingCalls
from motet.core.errors import Unavailable
from motet.core.models import ModelInfo
from motet.core.plugin_registry import PluginRegistry
from motet.core.settings import Settings
from motet.engine.client.engine_client import EngineClient
from motet.engine.client.template_renderer import TemplateRenderer
from motet.engine.client.tokenizer import ModelTokenizer


@cache
def _version() -> str:
    return version("motet")


@dataclass
class Services:
    """The parts of one API process; those that have a default need no setting up."""

    settings: Settings
    text: ModelTokenizer
    engine: EngineClient
    adapters: Adapters
    renderer: TemplateRenderer
    plugins: PluginRegistry
    model_name: str
    database: Database
    drain: Drain = field(default_factory=Drain)
    grammars: GrammarChecker = field(default_factory=GrammarChecker)
    templates: BlockingCalls = field(default_factory=lambda: BlockingCalls("chat-templates", per_key=4))
    tokenising: Tokenising = field(default_factory=Tokenising)
    flow: str = ""  # the caller's, in parts that `for_request` made
    started: int = field(default_factory=lambda: int(time.time()))

    def model(self) -> ModelInfo:
        """The facts of the loaded model. Raises Unavailable, saying why, while there is none or we shut down."""
        self.drain.check()
        if not self.engine.ready or self.engine.model is None:
            raise Unavailable(self.engine.reason or "the model is still being loaded; try again in a moment")
        return self.engine.model

    def for_request(self, adapter: ServedAdapter | None, caller: Caller) -> Services:
        """The same parts with the adapter's text side, and the caller's place in the queues.

        The adapter's prompts, stops and answers are in its own tokens.

        Raises AdapterRefused if its tokens cannot be used with the base's vocabulary.
        """
        tokens = adapter.prepared.tokens if adapter else None
        return replace(self, text=self.text.base.for_adapter(tokens) if tokens else self.text, flow=caller.flow)

    @cached_property
    def fingerprint(self) -> str:
        """`system_fingerprint`: the same as long as version, model and tokenizer are."""
        facts = "\n".join((_version(), self.model_name, self.text.fingerprint))
        return "fp_" + hashlib.sha256(facts.encode()).hexdigest()[:12]
