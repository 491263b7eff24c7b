"""A server with one tiny base model, and adapters of it in the formats that public reports describe.

Each is made from what PEFT saves, edited as the report says, in its own directory below the adapter root.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import torch
from support.adapter_forms import AdapterForms
from support.equality import Scored, assert_close
from support.fake_hub import Hub
from support.peft_oracle import Oracle
from support.server import Server, serving
from support.tiny_adapters import Tensors
from support.tiny_chat_model import write_chat_model

CONFIG = "adapter_config.json"
PROMPT = [3, 1, 4, 1, 5, 92, 65, 35, 89, 79, 32, 38]
OUTPUT = 12
MAX_RANK = 512

Change = Callable[[Tensors], Tensors]


@dataclass
class AdapterServer:
    """A real server with adapters in `forms.place` and the hub cache `hub_cache`, and the PEFT reference."""

    forms: AdapterForms
    oracle: Oracle
    hub: Hub
    hub_cache: Path
    server: Server
    client: httpx2.Client

    @property
    def root(self) -> Path:
        """The adapter root."""
        return self.forms.place

    def post(self, path: str, body: Mapping[str, Any], **headers: str) -> httpx2.Response:
        """Send JSON."""
        return self.client.post(path, json=body, headers=headers)

    def complete(self, model: str, **fields: Any) -> httpx2.Response:
        """Request greedy tokens of `model` after the prompt, with their logprobs."""
        body = {"model": model, "prompt": PROMPT, "max_tokens": OUTPUT, "temperature": 0, "logprobs": 0}
        return self.post("/v1/completions", {**body, "ignore_eos": True, "return_token_ids": True, **fields})

    def assert_served(self, model: str, directory: Path | None) -> None:
        """Assert that `model` answers as PEFT with the adapter in `directory` (None: the base model)."""
        response = self.complete(model)
        assert response.status_code == 200, response.text
        [choice] = response.json()["choices"]
        ours = [Scored(*pair) for pair in zip(choice["token_ids"], choice["logprobs"]["token_logprobs"], strict=True)]
        assert len(ours) == OUTPUT
        reference, margins = self.oracle.score(PROMPT, [scored.token for scored in ours], directory)
        assert_close(ours, reference, margins)

    def refusal(self, model: str, status: int = 422, **fields: Any) -> str:
        """The message with which a request for `model` is refused."""
        response = self.complete(model, **fields)
        assert response.status_code == status, response.text
        return str(response.json()["error"]["message"])

    def listed(self) -> list[str]:
        """The ids in GET /v1/models."""
        return [model["id"] for model in self.client.get("/v1/models").json()["data"]]

    def wait_listed(self, *names: str) -> None:
        """Wait until GET /v1/models, which is cached for some seconds, lists all of `names`."""
        deadline = time.monotonic() + 60
        while not set(names) <= set(self.listed()):
            assert time.monotonic() < deadline, f"{names} are not all in {self.listed()}"
            time.sleep(0.2)


@contextlib.contextmanager
def serve_adapters(place: Path) -> Iterator[AdapterServer]:
    """Start the server; the adapter root, the hub's cache and Motet's cache are below `place`."""
    model = write_chat_model(place / "models" / "tiny")
    root, hub_cache = place / "root", place / "hub"
    for directory in (root, hub_cache):
        directory.mkdir()
    settings = {"adapter-slots": 8, "max-adapter-rank": MAX_RANK, "kv-memory": "64MiB", "adapter-memory": "256MiB"}
    arguments = ["--model", str(model), "--adapter-root", str(root), "--adapter-root", str(hub_cache)]
    arguments += [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    with Hub() as hub:
        hub.known_tokens.add("hf_operator")
        environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_operator", "MOTET_CACHE": str(place / "cache")}
        environment["HF_HUB_OFFLINE"] = "0"  # other tests of this process may have set it
        forms, oracle = AdapterForms(root, model), Oracle(model)
        with (
            serving(*arguments, env={**os.environ, **environment}, log=place / "log") as server,
            httpx2.Client(base_url=server.url, timeout=60) as client,
        ):
            yield AdapterServer(forms, oracle, hub, hub_cache, server, client)


def renamed(pattern: str, replacement: str) -> Change:
    """The tensors under other names."""
    return lambda tensors: {re.sub(pattern, replacement, name): tensor for name, tensor in tensors.items()}


def added(**tensors: torch.Tensor) -> Change:
    """More tensors; in their names, `__` stands for a dot."""
    return lambda present: present | {name.replace("__", "."): tensor for name, tensor in tensors.items()}


def cast(dtype: torch.dtype) -> Change:
    """The tensors in another dtype."""
    return lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()}
