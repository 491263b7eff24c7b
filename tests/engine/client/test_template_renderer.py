"""Chat templates in worker processes: what transformers renders, and limits that hold."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
import psutil
import pytest

from motet.core.chat_template import ChatTemplate
from motet.core.errors import InvalidRequest, MotetError, Unavailable
from motet.engine.client.subprocess_main import LENGTH_BYTES
from motet.engine.client.template_renderer import TemplateRenderer
from motet.engine.client.template_worker import Render
from motet.plugins.chat_templates import template_in

T = TypeVar("T")
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "<b>Ünïcode</b> & 'quotes' 🦜"},
    {"role": "assistant", "content": None, "reasoning": "hm", "tool_calls": [{"name": "f", "arguments": {"é": 1}}]},
    {"role": "tool", "content": "42"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
TEMPLATES = {
    "tools": """{%- if tools %}
{{ tools | tojson(indent=2) }}
{% endif %}
{%- for message in messages %}
    {%- if message.content is not defined %}{% continue %}{% endif %}
    {{- bos_token + message.role + ': ' + message.content | trim + eos_token }}
    {%- if loop.index > 3 %}{% break %}{% endif %}
{%- endfor %}
{% if documents %}{{ documents | tojson }}{% endif %}
{% if add_generation_prompt %}assistant:{% endif %}""",
    "namespace": """{% set ns = namespace(n=0, last='') %}
{% for m in messages %}
  {% set ns.n = ns.n + 1 %}
  {% if m['role'] == 'assistant' %}{% generation %}{% set x = m.thinking %}<{{ x }}>{% endgeneration %}
  {% endif %}
  {% if m.tool_calls is defined %}{{ m.tool_calls | tojson(sort_keys=true, separators=(',', ':')) }}{% endif %}
{% endfor %}
{{ ns.n }} {{ dict(a=1) }} {{ dict.fromkeys('ab') }} {{ undefined_thing }} {{ mode | default('plain') }}
""",
    "macro": """{% macro show(m) %}[{{ m.role | upper }}] {{ m.content or m.reasoning_content }}{% endmacro %}
{% for m in messages[::-1] %}{{ show(m) }}
{% endfor %}{{ strftime_now('%Y') }}""",
}
WORKER = [sys.executable, "-m", "motet.engine.client.template_worker"]
SLOW = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@asynccontextmanager
async def rendering() -> AsyncIterator[TemplateRenderer]:
    """A renderer that leaves no process behind."""
    renderer = TemplateRenderer()
    try:
        yield renderer
    finally:
        await renderer.close()
        assert workers() == []


def workers() -> list[psutil.Process]:
    """This process's template workers, zombies included."""
    return [p for p in psutil.Process().children() if p.status() == psutil.STATUS_ZOMBIE or _is_worker(p)]


def _is_worker(process: psutil.Process) -> bool:
    return any("template_worker" in part for part in process.cmdline())


def with_renderer(use: Callable[[TemplateRenderer], Awaitable[T]]) -> T:
    async def main() -> T:
        async with rendering() as renderer:
            return await use(renderer)

    return asyncio.run(main())


async def refusal(renderer: TemplateRenderer, text: str, origin: str = "adapter", **variables: object) -> MotetError:
    with pytest.raises(MotetError) as raised:
        await renderer.render(ChatTemplate(text, origin), {"messages": MESSAGES, **variables})
    return raised.value


def test_equals_transformers(model_directory: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_directory)
    own = template_in(model_directory)
    assert own == tokenizer.chat_template
    chat = [m for m in MESSAGES if m["content"]]
    cases = [(own, chat, {}), (own, chat[1:], {"add_generation_prompt": True})] + [
        (text, MESSAGES, extra)
        for text in TEMPLATES.values()
        for extra in ({}, {"tools": TOOLS, "add_generation_prompt": True, "mode": "x"}, {"documents": [{"title": "é"}]})
    ]

    async def render_all(renderer: TemplateRenderer) -> list[str]:
        tokens = dict(tokenizer.special_tokens_map)
        return [
            await renderer.render(ChatTemplate(text, "base"), {"messages": messages, **tokens, **extra})
            for text, messages, extra in cases
        ]

    for (text, messages, extra), rendered in zip(cases, with_renderer(render_all), strict=True):
        expected = tokenizer.apply_chat_template(messages, chat_template=text, tokenize=False, **extra)
        assert rendered == expected


def test_a_slow_template_ends_in_time_and_delays_only_its_own_kind() -> None:
    async def use(renderer: TemplateRenderer) -> None:
        quick = ChatTemplate("{{ messages | length }}", "base")
        for origin in ("base", "adapter"):  # both workers are up
            await renderer.render(ChatTemplate("x", origin), {})
        started = time.perf_counter()
        slow, beside, queued = (asyncio.create_task(refusal(renderer, SLOW)) for _ in range(3))  # for two workers
        await asyncio.sleep(0.2)
        asked = time.perf_counter()
        assert await renderer.render(quick, {"messages": MESSAGES}) == "4"
        assert time.perf_counter() - asked < 0.5
        error = await slow
        assert 0.9 < time.perf_counter() - started < 1.8
        assert isinstance(error, InvalidRequest)
        assert error.param == "model"
        assert "adapter" in str(error)
        assert "1 s" in str(error)
        assert "moment ago" in str(await queued)
        assert "1 s" in str(await beside)
        # The same input is not tried again; another one finds a fresh worker.
        asked = time.perf_counter()
        assert "moment ago" in str(await refusal(renderer, SLOW))
        assert time.perf_counter() - asked < 0.1
        assert await renderer.render(ChatTemplate("ok", "adapter"), {}) == "ok"

    with_renderer(use)


def test_what_was_too_slow_for_one_owner_is_tried_for_another_and_for_other_messages() -> None:
    text = "{% if big %}" + SLOW + "{% endif %}fine"

    async def use(renderer: TemplateRenderer) -> None:
        template = ChatTemplate(text, "adapter")
        with pytest.raises(InvalidRequest, match="longer than 1 s"):
            await renderer.render(template, {"big": True}, "alice")
        with pytest.raises(InvalidRequest, match="moment ago"):
            await renderer.render(template, {"big": True}, "alice")
        assert await renderer.render(template, {"big": False}, "alice") == "fine"
        with pytest.raises(InvalidRequest, match="longer than 1 s"):
            await renderer.render(template, {"big": True}, "bob")

    with_renderer(use)


def test_slow_renders_of_one_adapter_do_not_hold_up_anothers() -> None:
    """Thirty that take all of their time are queued; another adapter's next turn comes after those that run."""

    async def use(renderer: TemplateRenderer) -> None:
        await renderer.render(ChatTemplate("up", "adapter"), {})
        crowd = [asyncio.create_task(refusal(renderer, SLOW, n=n)) for n in range(30)]
        await asyncio.sleep(0.1)
        asked = time.perf_counter()
        assert await renderer.render(ChatTemplate("other", "adapter"), {}) == "other"
        assert time.perf_counter() - asked < 3, "one turn, not fifteen"
        for task in crowd:
            task.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)

    with_renderer(use)


def test_a_deep_value_is_not_indented() -> None:
    """Llama's templates write tools with tojson(indent=4), which takes as long as a value is deep and wide."""
    deep: object = [0] * 40_000
    for _ in range(600):
        deep = [deep]
    template = ChatTemplate("{{ t | tojson(indent=4) }}", "base")

    async def use(renderer: TemplateRenderer) -> None:
        with pytest.raises(InvalidRequest, match="more than 64 levels"):
            await renderer.render(template, {"t": deep})
        assert await renderer.render(template, {"t": [[0]]}) == "[\n    [\n        0\n    ]\n]"

    with_renderer(use)


def test_the_bases_template_is_not_held_up_by_one_caller() -> None:
    text = "{% if big %}" + SLOW + "{% endif %}fine"

    async def use(renderer: TemplateRenderer) -> None:
        slow = asyncio.create_task(refusal(renderer, text, "base", big=True))
        await asyncio.sleep(0)
        assert await renderer.render(ChatTemplate(text, "base"), {}) == "fine"
        assert not slow.done()
        error = await slow
        assert (error.param, error.status) == ("messages", 400)
        assert await renderer.render(ChatTemplate(text, "base"), {}) == "fine"

    with_renderer(use)


@pytest.mark.parametrize(
    ("text", "words", "param"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate", "messages"),
        ("{{ messages[0].content + 1 }}", "adapter", "messages"),
        ("{{ messages.append(1) }}", "adapter", "messages"),
        ("{{ ''.__class__.__mro__ }}", "adapter", "messages"),
        ("{{ namespace(__init__=1) }}", "__init__", "messages"),
        ("{% set n = namespace() %}{% set n._x = 1 %}", "_x", "messages"),
        ("{{ dict.__call__.__globals__ }}", "unsafe", "messages"),
        ("{% for %}", "adapter", "model"),
        ("{% generation %}", "adapter", "model"),
        ("{{ 'x' * 5000000 }}", "4194304 bytes", "model"),
        ("{% for i in range(99999) %}{{ 'x' * 100 }}{% endfor %}", "4194304 bytes", "model"),
        ("{{ 'x' * 2000000000 }}", "memory", "model"),
        ("{{ (messages * 500000000) | length }}", "memory", "model"),
        ("{{ 10 ** (10 ** 9) }}", "longer than 1 s", "model"),
        ("x" * 300_000, "262144 bytes", "model"),
        ("{{ '\\ud800' }}", "adapter", "messages"),
    ],
)
def test_what_a_template_may_not_do(text: str, words: str, param: str) -> None:
    async def use(renderer: TemplateRenderer) -> None:
        error = await refusal(renderer, text)
        assert isinstance(error, InvalidRequest)
        assert words in str(error)
        assert error.param == param
        assert await renderer.render(ChatTemplate("ok", "adapter"), {}) == "ok"

    with_renderer(use)


@pytest.mark.parametrize("value", ["\ud83d", 1 << 70])
def test_messages_that_cannot_be_sent_are_refused(value: object) -> None:
    async def use(renderer: TemplateRenderer) -> None:
        error = await refusal(renderer, "x", "base", extra=value)
        assert isinstance(error, InvalidRequest)
        assert error.param == "messages"

    with_renderer(use)


def test_a_worker_that_dies_is_replaced() -> None:
    async def use(renderer: TemplateRenderer) -> None:
        template = ChatTemplate("ok", "base")
        assert await renderer.render(template, {}) == "ok"
        (first,) = workers()
        first.kill()
        first.wait()
        await asyncio.sleep(0.2)
        assert await renderer.render(template, {}) == "ok"
        (second,) = workers()
        assert second.pid != first.pid

    with_renderer(use)


def test_a_caller_who_leaves_does_not_disturb_the_next() -> None:
    async def use(renderer: TemplateRenderer) -> None:
        await renderer.render(ChatTemplate("up", "adapter"), {})
        leaving = asyncio.create_task(renderer.render(ChatTemplate(SLOW, "adapter"), {}))
        await asyncio.sleep(0.1)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert await renderer.render(ChatTemplate("mine", "adapter"), {}) == "mine"

    with_renderer(use)


def test_ctrl_c_leaves_the_worker_alone_and_its_environment_holds_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")

    async def use(renderer: TemplateRenderer) -> None:
        await renderer.render(ChatTemplate("up", "base"), {})
        (worker,) = workers()
        assert set(worker.environ()) <= {"PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "TZ", "LC_CTYPE"}
        worker.send_signal(signal.SIGINT)
        assert await renderer.render(ChatTemplate("still here", "base"), {}) == "still here"
        assert workers() == [worker]
        assert os.getsid(worker.pid) == worker.pid

    with_renderer(use)


def test_a_worker_ends_with_its_stdin() -> None:
    worker = subprocess.run(WORKER, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=30, check=True)
    assert worker.stdout == b"\0\0\0\0"


@pytest.mark.slow  # seconds of processor time, by its nature
def test_a_worker_whose_server_is_gone_does_not_run_for_ever() -> None:
    frame = msgspec.msgpack.encode(Render(SLOW, {}))
    message = len(frame).to_bytes(LENGTH_BYTES, "big") + frame
    worker = subprocess.run(WORKER, input=message, stdout=subprocess.PIPE, timeout=30)
    assert worker.returncode == -signal.SIGXCPU


def test_close_ends_everything_and_refuses_what_waits() -> None:
    async def main() -> None:
        async with rendering() as renderer:
            await renderer.render(ChatTemplate("up", "adapter"), {})
            await renderer.render(ChatTemplate("up", "adapter"), {})
            slow, beside = (asyncio.create_task(refusal(renderer, SLOW, n=n)) for n in range(2))
            await asyncio.sleep(0.1)
            waits = asyncio.create_task(refusal(renderer, "{{ 1 }}"))
            await asyncio.sleep(0)
            await renderer.close()
            assert workers() == []
            assert isinstance(await slow, InvalidRequest)
            assert isinstance(await beside, InvalidRequest)
            assert isinstance(await waits, Unavailable)

    asyncio.run(main())


def test_a_crowd_is_refused_at_the_door() -> None:
    async def use(renderer: TemplateRenderer) -> None:
        template = ChatTemplate("{{ n }}", "adapter")
        jobs = [renderer.render(template, {"n": n}) for n in range(150)]
        other = renderer.render(ChatTemplate("another", "adapter"), {})
        *answers, beside = await asyncio.gather(*jobs, other, return_exceptions=True)
        assert answers[:128] == [str(n) for n in range(128)]
        assert {getattr(answer, "status", None) for answer in answers[128:]} == {429}
        assert beside == "another", "half of the places are left to others"

    with_renderer(use)
