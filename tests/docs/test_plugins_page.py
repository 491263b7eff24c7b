"""docs/plugins.md: its hooks match the code, and its plugins work when installed as pip does it."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from docs.pages import fences, read, section, table
from safetensors.numpy import save_file
from support.server import serving
from support.third_party import with_plugins
from tokenizers import Tokenizer

from motet.core import hookspecs

PAGE = "docs/plugins.md"
SECRET = "let-me-in"
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["q_proj"]}
SCHEMA = {"properties": {"city": {"enum": ["Oslo", "Bergen"]}}, "required": ["city"], "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}
PREFIX = "base_model.model.model.layers.0.self_attn.q_proj"


def hooks() -> dict[str, str]:
    """Each hook's name and the name of the class that it registers."""
    registered = {}
    for name, hook in inspect.getmembers(hookspecs, inspect.isfunction):
        if name.startswith("register_"):
            registered[name] = hook.__annotations__["register"].removeprefix("Register[").removesuffix("]")
    return registered


def test_the_page_lists_exactly_the_hooks() -> None:
    named = {row[0].strip("`"): row[1].strip("`") for row in table(read(PAGE))}
    assert named == hooks()
    for hook in named:
        assert section(PAGE, hook).count("```python") == 1
        assert f"def {hook}(" in section(PAGE, hook)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for PYTHONPATH in which the page's distribution is installed."""
    place = tmp_path_factory.mktemp("house")
    sources = place / "motet-house"
    sources.mkdir()
    for fence in fences(PAGE, "toml", "python"):
        (sources / fence.file).write_text(fence.text)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-build-isolation", "--target", str(place / "site"), str(sources)]
    subprocess.run(command, check=True, timeout=120)
    return place / "site"


class ProtectedFiles(SimpleHTTPRequestHandler):
    """Serves files below its directory; those under /private require the secret."""

    def send_head(self) -> Any:
        if self.path.startswith("/private") and self.headers.get("authorization") != f"Bearer {SECRET}":
            self.send_error(401)
            return None
        return super().send_head()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A web server with two small adapters, one of which requires the secret."""
    root = tmp_path_factory.mktemp("web")
    random = np.random.default_rng(0)
    for name in ("alpaca-tiny", "private/tiny"):
        directory = root / name
        directory.mkdir(parents=True)
        (directory / "adapter_config.json").write_text(json.dumps(CONFIG))
        shapes = {"lora_A": (4, 576), "lora_B": (576, 4)}
        tensors = {f"{PREFIX}.{k}.weight": random.normal(size=s).astype(np.float32) for k, s in shapes.items()}
        save_file(tensors, directory / "adapter_model.safetensors")
    with HTTPServer(("127.0.0.1", 0), partial(ProtectedFiles, directory=str(root))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def ask(url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """POST a chat request and return status and body."""
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_the_plugins_serve(site: Path, web: str, smollm2_directory: Path) -> None:
    environment = with_plugins(site, HOUSE_WEB_ROOT=web, HOUSE_SHELF=str(smollm2_directory.parent))
    (body,) = (json.loads(fence.text) for fence in fences(PAGE, "json"))
    model = ("--model", f"shelf:{smollm2_directory.name}", "--tool-parser", "lines")
    with serving(*model, env=environment) as server:
        assert server.health()[1]["model"] == smollm2_directory.name
        status, answer = ask(server.url, body)
        assert status == 200, answer
        assert answer["choices"][0]["message"]["content"] in ("yes", "no")
        text = f"### Instruction:\n{body['messages'][0]['content']}\n\n### Response:\n"
        prompt = Tokenizer.from_file(str(smollm2_directory / "tokenizer.json")).encode(text, add_special_tokens=False)
        assert answer["usage"]["prompt_tokens"] == len(prompt.ids)

        tools = {"messages": body["messages"], "tools": [TOOL], "tool_choice": "required", "max_tokens": 40}
        status, answer = ask(server.url, {"model": "web:alpaca-tiny", "parallel_tool_calls": False, **tools})
        assert (status, answer["choices"][0]["finish_reason"]) == (200, "tool_calls"), answer
        [call] = answer["choices"][0]["message"]["tool_calls"]
        assert call["function"]["name"] == "get_weather"
        assert json.loads(call["function"]["arguments"])["city"] in ("Oslo", "Bergen")

        private = {**body, "model": "web:private/tiny", "max_tokens": 1}
        status, answer = ask(server.url, private)
        assert (status, answer["error"]["param"]) == (401, "api_token")
        status, answer = ask(server.url, {**private, "api_token": SECRET})
        assert status == 200, answer
        assert ask(server.url, private)[0] == 401, "it is in the server, and still not for everybody"
        assert ask(server.url, {**body, "model": "web:alpaca-none"})[0] == 404
        status, answer = ask(server.url, {**body, "response_format": {"type": "verdict"}})
        assert (status, answer["error"]["param"]) == (400, "response_format.choices")


def test_motet_plugins_lists_distributions(site: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "motet", "plugins"],
        env=with_plugins(site, HOUSE_WEB_ROOT="http://localhost"),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    rows = [tuple(line.split(maxsplit=2)) for line in done.stdout.splitlines()]
    assert ("register_adapter_sources", "web", "house_adapters (motet-house)") in rows
    assert ("register_output_formats", "verdict", "house_formats (motet-house)") in rows


def test_choices_are_matched_literally(site: Path) -> None:
    code = (
        "from llguidance import LLMatcher; import house_formats;"
        "spec = house_formats.Verdict().grammar({'choices': ['a \"quoted\" \\\\ one', 'gr\\u00fc\\u00df', '(x|y)*']});"
        "wrong, why = LLMatcher.validate_grammar_with_warnings(LLMatcher.grammar_from_lark(spec.text));"
        "assert not wrong, why"
    )
    subprocess.run([sys.executable, "-c", code], env=with_plugins(site), check=True, timeout=60)
