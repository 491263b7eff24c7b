"""Attacks by requests: one caller cannot slow down others; a normal request is answered meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.api_caller import CHAT, COMPLETIONS, MESSAGES, Caller, drive
from support.scripted_api import TEMPLATE

from motet.api.http.api_keys import key_line
from motet.core.chat_template import ChatTemplate
from motet.core.errors import InvalidRequest
from motet.core.sampling_params import SamplingParams
from motet.core.settings import Settings
from motet.engine.client.template_renderer import TemplateRenderer
from motet.engine.sampling.sampling_batch import draw_parameters
from motet.engine.sampling.top_k_top_p import draw_tokens
from motet.engine.staging import StagingBuffer

SECONDS = 10.0
"""The time limit for a normal request during an attack: far above the usual time, and below that of attacks."""

INDENTING = "{{ (tools or custom_tools or []) | tojson(indent=4) }}" + TEMPLATE
SLOW = "{% if documents %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}"


def deep(levels: int = 600) -> list[Any]:
    """A list of 40,000 elements, nested `levels` deep: indented JSON has a deeply indented line for each."""
    value: list[Any] = [0] * 40_000
    for _ in range(levels):
        value = [value]
    return value


def tool(**more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}, **more}}}


def keyed(root: Path, *names: str) -> Settings:
    """Settings with an API key `sk-NAME` for each name; `boss` is an admin key."""
    file = root / "keys"
    file.write_text("\n".join(key_line(name, f"sk-{name}", name == "boss") for name in names))
    return Settings(api_keys=str(file))


def key(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer sk-{name}"}


async def in_time(caller: Caller, path: str, body: dict[str, Any], **headers: str) -> None:
    """Assert that a normal request is answered within SECONDS."""
    async with asyncio.timeout(SECONDS):
        await caller.answer(path, body, **headers)


async def beside(
    attacks: list[Awaitable[Any]], victim: Awaitable[None], release: threading.Event | None = None
) -> list[int]:
    """Run `victim` while `attacks` are going on, until `release`; returns the statuses of those that have ended."""
    tasks = [asyncio.ensure_future(attack) for attack in attacks]
    await asyncio.sleep(0.2)
    await victim
    ended = [task.result().status_code for task in tasks if task.done()]
    if release is not None:
        release.set()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return ended


def test_4_sampling_has_no_cliff() -> None:
    """A flat distribution, the widest top_p and typical_p: a few ms per row; sorting took 15 ms."""
    rows, size = 32, 49_152
    logits = torch.from_numpy(np.random.default_rng(0).normal(0, 0.5, (rows, size)).astype(np.float32))
    probabilities = torch.softmax(logits / 2, dim=-1)
    draws = [number / rows for number in range(rows)]

    def cost(**cuts: float) -> float:
        params = [SamplingParams(max_tokens=1, **cuts)] * rows  # type: ignore[arg-type]
        staging, ids = StagingBuffer(1 << 16, torch.device("cpu")), torch.zeros(rows, dtype=torch.int32)
        staging.begin()
        parameters = draw_parameters(None, params, draws, staging)
        draw_tokens(probabilities.clone(), parameters, ids)
        began = time.process_time()
        draw_tokens(probabilities.clone(), parameters, ids)
        return (time.process_time() - began) / rows

    assert cost(top_p=0.999999, typical_p=0.5) < max(0.008, 20 * cost())


@pytest.mark.parametrize("field", ["tools", "custom_tools"])
def test_5_a_deep_value_does_not_block_others(tmp_path: Path, field: str) -> None:
    async def scenario(caller: Caller) -> None:
        (tmp_path / "api" / "shelf" / "one").mkdir(parents=True)
        (tmp_path / "api" / "shelf" / "one" / "chat_template.jinja").write_text(INDENTING)
        attack: dict[str, Any] = {"model": "shelf:one", "messages": MESSAGES}
        attack |= {"tools": [tool(x=deep())]} if field == "tools" else {"chat_template_kwargs": {field: deep()}}
        began = time.monotonic()
        response = await caller.post(CHAT, attack, **key("alice"))
        assert response.status_code == 400
        assert time.monotonic() - began < SECONDS
        ordinary = {"model": "shelf:one", "messages": MESSAGES, "tools": [tool()]}
        for name in ("alice", "bob"):
            await in_time(caller, CHAT, ordinary, **key(name))

    drive(tmp_path / "api", scenario, settings=keyed(tmp_path, "alice", "bob"))


def test_6_slow_templates_of_one_adapter_do_not_hold_up_others(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        for name, template in (("one", SLOW + TEMPLATE), ("two", TEMPLATE)):
            (tmp_path / "api" / "shelf" / name).mkdir(parents=True)
            (tmp_path / "api" / "shelf" / name / "chat_template.jinja").write_text(template)
        documents: dict[str, Any] = {"model": "shelf:one", "messages": MESSAGES}
        attacks = [
            caller.post(CHAT, {**documents, "documents": [{"text": str(number)}]}, **key("alice"))
            for number in range(30)
        ]
        victim = in_time(caller, CHAT, {"model": "shelf:two", "messages": MESSAGES}, **key("bob"))
        assert set(await beside(attacks, victim)) <= {400, 429}

    drive(tmp_path / "api", scenario, settings=keyed(tmp_path, "alice", "bob"))


def test_6_large_bodies_do_not_hold_up_the_bases_template(tmp_path: Path) -> None:
    large = deep(60)

    async def scenario(caller: Caller) -> None:
        body = {"messages": MESSAGES, "chat_template_kwargs": {"custom_tools": large}, "max_tokens": 1}
        attacks = [caller.post(CHAT, {**body, "seed": number}, **key("alice")) for number in range(40)]
        ended = await beside(attacks, in_time(caller, CHAT, {"messages": MESSAGES}, **key("bob")))
        assert len(ended) < 20, "it does not wait for those that came before it"

    drive(tmp_path / "api", scenario, INDENTING, settings=keyed(tmp_path, "alice", "bob"))


def test_7_long_prompts_do_not_hold_up_shorter_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokenising never ends here: the other key's prompt does not wait for it."""
    released = threading.Event()

    async def scenario(caller: Caller) -> None:
        text = caller.api.services.tokenizer
        encode = text.encode_batch

        def slow(texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
            if len(texts[0]) > 100_000:
                released.wait(3 * SECONDS)
            return encode(texts, add_special_tokens=add_special_tokens)

        monkeypatch.setattr(text, "encode_batch", slow)
        whole = {"max_tokens": 1, "truncate_prompt_tokens": 10, "prompt": "ab1 " * 1_000_000}
        assert await caller.error(COMPLETIONS, whole, **key("alice")) == (400, "invalid_value", "prompt")
        attack = {"max_tokens": 1, "truncate_prompt_tokens": 10, "prompt": "ab1 " * 30_000}
        attacks = [caller.post(COMPLETIONS, attack, **key("alice")) for _ in range(20)]
        try:
            victim = in_time(caller, COMPLETIONS, {"prompt": "x" * 1200}, **key("bob"))
            assert await beside(attacks, victim, released) == []
        finally:
            released.set()

    drive(tmp_path / "api", scenario, settings=keyed(tmp_path, "alice", "bob"))


def test_14_a_fifo_in_one_adapter_does_not_end_all_chat(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        place = tmp_path / "shelf" / "one"
        place.mkdir(parents=True)
        os.mkfifo(place / "chat_template.jinja")
        body = {"model": "shelf:one", "messages": MESSAGES}
        async with asyncio.timeout(SECONDS):
            answers = await asyncio.gather(*(caller.error(CHAT, body) for _ in range(9)))
            assert all(status in (422, 503) for status, *_ in answers)
            for model in ("", "shelf:two"):
                await caller.answer(CHAT, {"model": model, "messages": MESSAGES})
            for path in ("/metrics", "/health"):
                assert (await caller.client.get(path)).status_code == 200

    drive(tmp_path, scenario)


def test_low_a_key_named_like_an_answer_cannot_cancel_requests(tmp_path: Path) -> None:
    """The key `cmpl-svc` has the request `nightly`: `cmpl-svc:nightly` is not an answer's id."""

    async def scenario(caller: Caller) -> None:
        engine = caller.api.engine
        engine.script, engine.step_seconds = (lambda _: "x" * 900), 0.01
        body = {"prompt": "hi", "max_tokens": 900}
        running = asyncio.create_task(caller.post(COMPLETIONS, body, **key("cmpl-svc"), **{"x-request-id": "nightly"}))
        while not engine.submits:
            await asyncio.sleep(0.005)

        async def cancel(id: str, name: str) -> int:
            response = await caller.client.post(f"/v1/requests/{id}/cancel", headers=key(name))
            return int(response.status_code)

        assert [await cancel("cmpl-svc:nightly", name) for name in ("mallory", "boss")] == [404, 200]
        assert [await cancel("nightly", name) for name in ("mallory", "cmpl-svc")] == [404, 200]
        running.cancel()

    drive(tmp_path / "api", scenario, settings=keyed(tmp_path, "cmpl-svc", "mallory", "boss"))


TEMPLATES = {
    "hang": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "memory": "{{ 'x' * 2000000000 }}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "output": "{% for i in range(99999) %}{{ 'x' * 100 }}{% endfor %}",
    "deep": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
}
ESCAPES = [
    "''.__class__.__mro__[1].__subclasses__()",
    "cycler.__init__.__globals__.os.popen('id')",
    "self.__init__.__globals__",
    "lipsum.__globals__",
    "namespace.__init__.__globals__",
    "messages.__class__.__base__",
    "(messages|attr('__class__'))",
    "messages['__class__']['__mro__']",
    "'{0.__class__}'.format(messages)",
    "('%s' % messages).format.__self__.__class__",
    "raise_exception.__globals__",
    "strftime_now.__globals__",
    "dict.mro()",
    "(messages|map(attribute='__class__')|list)",
    "range.__call__.__self__",
    "joiner.__init__.__globals__",
]


async def rendered(renderer: TemplateRenderer, text: str) -> str:
    """The rendered `text`, or the error message."""
    try:
        return await renderer.render(ChatTemplate(text, "adapter"), {"messages": MESSAGES}, "mallory")
    except InvalidRequest as error:
        return f"refused: {error}"


def test_withstood_templates() -> None:
    async def main() -> None:
        renderer = TemplateRenderer()
        try:
            for form, text in TEMPLATES.items():
                began = time.monotonic()
                assert (await rendered(renderer, text)).startswith("refused: "), form
                assert time.monotonic() - began < SECONDS
            for escape in ESCAPES:
                found = await rendered(renderer, "{{ " + escape + " }}")
                objects = ("<class", "<function", "<module", "'__builtins__'", "uid=")
                assert not any(word in found for word in objects), (escape, found)
            assert await rendered(renderer, "fine") == "fine"
        finally:
            await renderer.close()

    asyncio.run(main())


NESTED = json.dumps({"messages": MESSAGES, "x": 1}).replace("1", "[" * 50_000 + "]" * 50_000)
BODIES: Mapping[str, tuple[bytes, int]] = {
    "deep": (NESTED.encode(), 400),
    "unclosed": (b'{"messages": ' + b"[" * 90_000, 400),
    "surrogate": (b'{"model": "\\ud800", "messages": [{"role": "user", "content": "hi"}]}', 400),
    "not-utf-8": (b'{"model": "\xff"}', 400),
    "nan": (b'{"temperature": NaN}', 400),
    "huge-float": (b'{"messages": [{"role": "user", "content": "hi"}], "temperature": 1e999}', 400),
    "300000-fields": (
        b'{"messages": [{"role": "user", "content": "hi"}], '
        + b",".join(b'"f%d": 1' % number for number in range(300_000))
        + b"}",
        400,
    ),
    "list": (b"[]", 400),
    "empty": (b"", 400),
}
FIELDS: list[dict[str, Any]] = [
    {"max_tokens": 10**30},
    {"seed": 10**30},
    {"n": 10**6},
    {"n": 2**64},
    {"max_tokens": 10**6},
    {"top_logprobs": 10**6, "logprobs": True},
    {"logit_bias": {str(number): 1 for number in range(100_000)}},
    {"logit_bias": {"1e3": 1}},
    {"stop": ["x" * 100_000]},
    {"stop": [""]},
    {"temperature": -1},
    {"top_p": 1e300},
    {"messages": [{"role": "user", "content": "x" * 3_000_000}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 200_000}]},
    {"messages": [{"role": "user\0", "content": "hi"}]},
    {"model": "x" * 100_000},
    {"model": "../../etc/passwd"},
    {"tools": [tool()] * 10_000},
]


def test_withstood_bodies(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        for form, (content, status) in BODIES.items():
            async with asyncio.timeout(SECONDS):
                response = await caller.client.post(CHAT, data=content, headers={"content-type": "application/json"})
            assert response.status_code == status, form
            assert (await response.get_json())["error"]["message"]
        for fields in FIELDS:
            async with asyncio.timeout(SECONDS):
                response = await caller.post(CHAT, {"messages": MESSAGES, **fields})
            assert 400 <= response.status_code < 500, str(fields)[:80]
        await in_time(caller, CHAT, {"messages": MESSAGES})

    drive(tmp_path, scenario)


def schema(**fields: Any) -> dict[str, Any]:
    return {"type": "json_object", "schema": {"type": "object", **fields}}


LETTERS = "abcdefghijklmnopqrstuvwxyz"
GRAMMARS: dict[str, dict[str, Any]] = {
    "all-of": schema(properties={"x": {"allOf": [{"type": "string", "pattern": f".*{c}.*"} for c in LETTERS]}}),
    "remote-ref": schema(properties={"x": {"$ref": "http://127.0.0.1:9/schema.json"}}),
    "file-ref": schema(properties={"x": {"$ref": "file:///etc/passwd"}}),
    "regex-repeats": {"type": "regex", "regex": "((a{1,1000}){1,1000}){1,1000}"},
    "lark-unknown": {"type": "grammar", "grammar": "start: nothing"},
    "huge-min-items": schema(properties={"x": {"type": "array", "items": {"type": "string"}, "minItems": 10**9}}),
    "many-properties": schema(properties={f"p{number}": {"type": "string"} for number in range(20_000)}),
}


def test_withstood_grammars(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        await caller.answer(CHAT, {"messages": MESSAGES, "response_format": {"type": "json_object"}})
        attacks = [caller.post(CHAT, {"messages": MESSAGES, "response_format": each}) for each in GRAMMARS.values()]
        await beside(attacks, in_time(caller, CHAT, {"messages": MESSAGES}))
        for form in ("remote-ref", "file-ref", "lark-unknown"):
            status, code, _ = await caller.error(CHAT, {"messages": MESSAGES, "response_format": GRAMMARS[form]})
            assert (status, code) == (400, "invalid_grammar"), form

    drive(tmp_path, scenario)
