"""The requests of `motet bench`: the model and the prompt of each.

The seed determines all of them, so that two servers can be measured with the same requests.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from motet.core.errors import StartupError

Distribution: TypeAlias = Literal["none", "identical", "distinct", "uniform", "zipf"]
DISTRIBUTIONS: tuple[Distribution, ...] = get_args(Distribution)

_COMMON = (
    "the of and to in is was for on that with as it by at from his an were are which this be or has had its one their"
    " not but first they also new after who two her she been other when time more all some school there people over"
    " most only work between world where year under city day water number part still house find place system"
)
WORDS = tuple(_COMMON.split())
"""Common words: after a space, each is one token in the usual vocabularies."""

TOKEN_IDS = range(300, 1000)
"""Ordinary tokens in every vocabulary of a usable size."""


@dataclass(frozen=True)
class Workload:
    """`requests` requests, of which number i is always the same; lengths are in tokens (or words).

    Of the `adapters` (model names), requests use `none`, the first (`identical`), each in turn (`distinct`),
    a random one (`uniform`), or a random one with a weight of 1/rank (`zipf`).
    """

    model: str
    adapters: tuple[str, ...] = ()
    distribution: Distribution = "none"
    requests: int = 32
    prompt_tokens: int = 64
    output_tokens: int = 64
    prompt_form: Literal["words", "ids"] = "words"
    chat: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.distribution != "none" and not self.adapters:
            raise StartupError(f"--distribution {self.distribution} needs --adapters", param="adapters")
        if self.chat and self.prompt_form == "ids":
            raise StartupError("--prompt-form ids: a chat message is text; use words", param="prompt_form")

    @property
    def path(self) -> str:
        """The route of the requests."""
        return "/v1/chat/completions" if self.chat else "/v1/completions"

    def body(self, index: int) -> dict[str, Any]:
        """The JSON body of request `index`: greedy, streamed, with exactly `output_tokens` where ignore_eos works."""
        prompt = self.prompt(index)
        fields = {"messages": [{"role": "user", "content": prompt}]} if self.chat else {"prompt": prompt}
        return fields | {
            "model": self.model_of(index),
            "max_tokens": self.output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def model_of(self, index: int) -> str:
        """The model of request `index`."""
        match self.distribution:
            case "none":
                return self.model
            case "identical":
                return self.adapters[0]
            case "distinct":
                return self.adapters[index % len(self.adapters)]
        weights = [1 / (i + 1 if self.distribution == "zipf" else 1) for i in range(len(self.adapters))]
        return self._random("model", index).choices(self.adapters, weights)[0]

    def prompt(self, index: int) -> str | list[int]:
        """The prompt of request `index`; no two have the same beginning, so that no server can reuse a prefix."""
        draw = self._random("prompt", index)
        if self.prompt_form == "ids":
            return draw.choices(TOKEN_IDS, k=self.prompt_tokens)
        return " ".join(draw.choices(WORDS, k=self.prompt_tokens))

    def _random(self, purpose: str, index: int) -> random.Random:
        return random.Random(f"{self.seed} {purpose} {index}")
