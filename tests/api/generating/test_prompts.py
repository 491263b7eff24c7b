"""From messages and prompts to the tokens that the engine gets."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.api_caller import CHAT, COMPLETIONS, MESSAGES, Caller, drive, prompt_of
from support.scripted_api import CONTEXT

from motet.api.generating import chat_template_choice
from motet.core.chat_template import ChatTemplate, ChatTemplateFinder, TemplateContext


def test_messages_become_a_prompt_by_the_template(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        messages = [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]},
            {"role": "assistant", "content": "Hi"},
            {"role": "tool", "content": "42", "tool_call_id": "c"},
            {"role": "function", "content": "43", "name": "f"},
        ]
        answer = await caller.answer(CHAT, {"messages": messages})
        assert prompt_of(caller) == (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
            "<|im_start|>assistant\nHi<|im_end|>\n<|im_start|>user\n<tool_response>\n42\n</tool_response><|im_end|>\n"
            "<|im_start|>user\n<tool_response>\n43\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
        )
        assert answer["usage"]["prompt_tokens"] == len(caller.api.engine.submits[-1].prompt)
        assert answer["usage"]["completion_tokens"] == len("Hello!") + 1
        assert answer["choices"][0]["message"] == {"role": "assistant", "content": "Hello!", "refusal": None}

    drive(tmp_path, scenario)


def test_an_adapters_own_template_comes_first(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        await caller.answer(CHAT, {"model": "one", "messages": MESSAGES})
        assert prompt_of(caller).startswith("<|im_start|>user")
        (caller.api.shelf.root / "two").mkdir(parents=True)
        (caller.api.shelf.root / "two" / "chat_template.jinja").write_text("[{{ messages[0].content }}]")
        await caller.answer(CHAT, {"model": "shelf:two", "messages": MESSAGES})
        assert prompt_of(caller) == "[hi]"

    drive(tmp_path, scenario)


def test_without_a_template_chat_is_refused_with_the_way_out(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        assert await caller.error(CHAT, {"messages": MESSAGES}) == (400, "no_chat_template", "messages")
        await caller.answer(COMPLETIONS, {"prompt": "hi"})

    drive(tmp_path, scenario, template=None)


def test_what_a_template_says_itself_reaches_the_caller(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        response = await caller.post(CHAT, {"messages": MESSAGES})
        error = (await response.get_json())["error"]
        assert (response.status_code, error["param"]) == (400, "messages")
        assert "roles must alternate" in error["message"]

    drive(tmp_path, scenario, template="{{ raise_exception('roles must alternate') }}")


def test_tool_calls_of_the_past_are_written_by_the_template_or_as_text(tmp_path: Path) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    messages = [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [call]}]

    async def as_text(caller: Caller) -> None:
        await caller.answer(CHAT, {"messages": messages})
        assert '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call><|im_end|>' in prompt_of(caller)

    async def written(caller: Caller) -> None:
        await caller.answer(CHAT, {"messages": messages})
        assert prompt_of(caller) == "f1"

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    drive(tmp_path / "a", as_text)
    template = "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.name }}{{ c.function.arguments.x }}"
    drive(tmp_path / "b", written, template=template + "{% endfor %}{% endfor %}")


def test_prompts_in_all_their_forms(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        encode = caller.api.services.tokenizer.encode
        ab, c = tuple(encode("ab", add_special_tokens=True)), tuple(encode("c", add_special_tokens=True))
        forms = [
            ("ab", [ab]),
            (["ab", "c"], [ab, c]),
            (list(ab), [ab]),
            ([list(ab), list(c)], [ab, c]),
        ]
        for prompt, wanted in forms:
            caller.api.engine.submits.clear()
            await caller.answer(COMPLETIONS, {"prompt": prompt})
            assert [submit.prompt for submit in caller.api.engine.submits] == wanted
        for prompt in ("", [], [[]], ["a", 1], [1, [2]], ["a", ""], [10_000], ["x"] * 129):
            status, _, param = await caller.error(COMPLETIONS, {"prompt": prompt})
            assert (status, (param or "").startswith("prompt")) == (400, True), prompt

    drive(tmp_path, scenario)


def test_what_does_not_fit_is_refused_with_numbers(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        code = "context_length_exceeded"
        assert await caller.error(COMPLETIONS, {"prompt": "x" * CONTEXT}) == (400, code, "prompt")
        assert await caller.error(COMPLETIONS, {"prompt": "x", "max_tokens": CONTEXT}) == (400, code, "max_tokens")
        assert await caller.error(CHAT, {"messages": [{"role": "user", "content": "x" * CONTEXT}]}) == (
            400,
            code,
            "messages",
        )
        await caller.answer(CHAT, {"messages": MESSAGES})
        submit = caller.api.engine.submits[-1]
        assert submit.params.max_tokens == CONTEXT - len(submit.prompt)

    drive(tmp_path, scenario)


def test_a_text_that_cannot_fit_is_not_even_tokenised(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        def never(*_: object, **__: object) -> list[list[int]]:
            raise AssertionError("tokenised")

        text = caller.api.services.tokenizer
        assert text.pieces.longest == len("<|im_start|>")
        text.encode_batch = never  # type: ignore[method-assign]
        long = "é" * (CONTEXT * text.pieces.longest // 2 + 1)  # two bytes each
        code = "context_length_exceeded"
        assert await caller.error(COMPLETIONS, {"prompt": long}) == (400, code, "prompt")
        assert await caller.error(COMPLETIONS, {"prompt": ["a", long]}) == (400, code, "prompt[1]")
        assert await caller.error(CHAT, {"messages": [{"role": "user", "content": long}]}) == (400, code, "messages")

    drive(tmp_path, scenario)


def test_more_messages_than_tokens_are_not_rendered(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        await caller.answer(CHAT, {"messages": MESSAGES * CONTEXT})
        found = await caller.error(CHAT, {"messages": MESSAGES * (CONTEXT + 1)})
        assert found == (400, "context_length_exceeded", "messages")

    drive(tmp_path, scenario, template="{{ messages | length }}")


def test_many_prompts_are_tokenised_at_once(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        text, calls = caller.api.services.tokenizer, []
        encode = text.encode_batch

        def counted(texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
            if add_special_tokens:  # the scripted engine makes its answers with it, too
                calls.append((len(texts), threading.current_thread() is threading.main_thread()))
            return encode(texts, add_special_tokens=add_special_tokens)

        text.encode_batch = counted  # type: ignore[method-assign]
        answer = await caller.answer(COMPLETIONS, {"prompt": [f"{n} and some more" for n in range(128)]})
        assert answer["usage"]["prompt_tokens"] == sum(len(f"{n} and some more") for n in range(128))
        assert calls == [(128, False)]

    drive(tmp_path, scenario)


def test_a_template_whose_files_hang_holds_up_no_other_chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    class Hangs(ChatTemplateFinder):
        def find(self, context: TemplateContext) -> ChatTemplate | None:
            if context.adapter_id == "one":
                released.wait(30)
            return None

    monkeypatch.setattr(chat_template_choice, "TEMPLATE_SECONDS", 0.2)

    async def scenario(caller: Caller) -> None:
        caller.api.services.plugins.chat_templates.adder("tests")("hangs", Hangs())
        body = {"messages": MESSAGES}
        hung = [asyncio.create_task(caller.error(CHAT, {"model": "one", **body})) for _ in range(40)]
        await asyncio.sleep(0.05)
        assert (await caller.answer(CHAT, {"model": "shelf:two", **body}))["choices"]
        assert (await caller.answer(CHAT, body))["choices"]
        assert set(await asyncio.gather(*hung)) == {(503, "source_unavailable", "model")}
        released.set()

    drive(tmp_path, scenario)
