"""The routes around a scripted engine: adapters, templates, prompts, tokens, headers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from quart import Quart
from support.scripted_api import CONTEXT, TEMPLATE, Scripted, scripted_api

from motet.api.app import create_app
from motet.core.sampling import choice_seed
from motet.core.settings import Settings

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"

Post = Callable[..., Awaitable[Any]]


class Caller:
    """Sends JSON and reads it back."""

    def __init__(self, api: Scripted) -> None:
        self.api = api
        self.app: Quart = create_app(api.services)
        self.client = self.app.test_client()

    async def post(self, path: str, body: dict[str, Any], **headers: str) -> Any:
        return await self.client.post(path, json={"model": "", **body}, headers=headers)

    async def answer(self, path: str, body: dict[str, Any], **headers: str) -> Any:
        response = await self.post(path, body, **headers)
        assert response.status_code == 200, await response.get_data()
        return await response.get_json()

    async def error(self, path: str, body: dict[str, Any], **headers: str) -> tuple[int, str, str | None]:
        response = await self.post(path, body, **headers)
        error = (await response.get_json())["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return response.status_code, error["code"], error["param"]


def drive(
    tmp_path: Path,
    scenario: Callable[[Caller], Awaitable[None]],
    template: str | None = TEMPLATE,
    settings: Settings | None = None,
) -> None:
    async def main() -> None:
        async with scripted_api(tmp_path, settings, template) as api:
            await scenario(Caller(api))

    asyncio.run(main())


def prompt_of(caller: Caller) -> str:
    """What the engine was last asked to continue."""
    return caller.api.services.text.decode(caller.api.engine.submits[-1].prompt, skip_special_tokens=False)


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
            "<|im_start|>assistant\nHi<|im_end|>\n<|im_start|>tool\n42<|im_end|>\n"
            "<|im_start|>function\n43<|im_end|>\n<|im_start|>assistant\n"
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


def test_tool_calls_of_the_past_need_a_template_that_writes_them(tmp_path: Path) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    messages = [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [call]}]

    async def refused(caller: Caller) -> None:
        found = await caller.error(CHAT, {"messages": messages})
        assert found == (400, "unsupported_parameter", "messages[1].tool_calls")

    async def written(caller: Caller) -> None:
        await caller.answer(CHAT, {"messages": messages})
        assert prompt_of(caller) == "f1"
        broken = {**call, "function": {"name": "f", "arguments": "{"}}
        found = await caller.error(CHAT, {"messages": [{"role": "assistant", "tool_calls": [broken]}]})
        assert found == (400, "invalid_value", "messages[0].tool_calls[0].function.arguments")

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    drive(tmp_path / "a", refused)
    template = "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.name }}{{ c.function.arguments.x }}"
    drive(tmp_path / "b", written, template=template + "{% endfor %}{% endfor %}")


def test_prompts_in_all_their_forms(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        encode = caller.api.services.text.encode
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


def test_choices_are_numbered_by_prompt_and_seeded_by_choice(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        caller.api.engine.script = lambda request: request.id.rpartition("-")[2]
        answer = await caller.answer(COMPLETIONS, {"prompt": ["a", "bc"], "n": 2, "seed": 5})
        assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [
            (0, "0"),
            (1, "1"),
            (2, "2"),
            (3, "3"),
        ]
        assert answer["usage"] == {
            "prompt_tokens": 3,
            "completion_tokens": 8,
            "total_tokens": 11,
            "prompt_tokens_details": {"cached_tokens": 0},
        }
        submits = sorted(caller.api.engine.submits, key=lambda submit: submit.id)
        assert [len(submit.prompt) for submit in submits] == [1, 1, 2, 2]
        assert [submit.params.seed for submit in submits] == [5, choice_seed(5, 1)] * 2
        assert len({submit.id for submit in submits}) == 4

    drive(tmp_path, scenario)


def test_an_adapter_is_named_to_the_engine_with_its_own_eos(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        answer = await caller.answer(COMPLETIONS, {"model": "one", "prompt": "a"})
        assert answer["model"] == "one"
        submit = caller.api.engine.submits[-1]
        assert submit.adapter == "print-of-one"
        assert [adapter.id for adapter in caller.api.engine.registered] == ["one"]
        assert set(submit.params.eos_token_ids) == {7, *caller.api.services.text.eos_token_ids}
        await caller.answer(COMPLETIONS, {"model": "tiny", "prompt": "a"})
        assert caller.api.engine.submits[-1].adapter is None
        await caller.answer(COMPLETIONS, {"model": "two", "adapter_source": "shelf", "prompt": "a"})
        assert caller.api.engine.submits[-1].adapter == "print-of-two"

    drive(tmp_path, scenario)


def test_adapters_fail_with_their_own_statuses_before_a_stream_opens(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        for stream in (False, True):
            for path, body in ((CHAT, {"messages": MESSAGES}), (COMPLETIONS, {"prompt": "a"})):
                body = {**body, "stream": stream}
                assert await caller.error(path, {**body, "model": "nope"}) == (404, "model_not_found", "model")
                assert (await caller.error(path, {**body, "model": "shelf:secret"}))[0] == 403
                assert (await caller.error(path, {**body, "model": "shelf:broken"}))[0] == 422
                status, _, param = await caller.error(path, {**body, "model": "x", "adapter_source": "moon"})
                assert (status, param) == (400, "adapter_source")
        assert not caller.api.engine.submits

    drive(tmp_path, scenario)


@pytest.mark.parametrize(
    ("body", "headers", "wanted"),
    [
        ({"api_token": "hf_good"}, {"x-adapter-token": "bad", "authorization": "Bearer hf_bad"}, "hf_good"),
        ({}, {"x-adapter-token": "hf_good", "authorization": "Bearer hf_bad"}, "hf_good"),
        ({}, {"authorization": "Bearer hf_good"}, "hf_good"),
        ({}, {"authorization": "Bearer sk-something"}, None),
        ({}, {"authorization": "Basic hf_good"}, None),
        ({"api_token": ""}, {}, None),
    ],
)
def test_whose_token_the_source_sees(
    tmp_path: Path, body: dict[str, str], headers: dict[str, str], wanted: str | None
) -> None:
    async def scenario(caller: Caller) -> None:
        response = await caller.post(COMPLETIONS, {"model": "shelf:secret", "prompt": "a", **body}, **headers)
        assert caller.api.shelf.tokens == [wanted]
        assert response.status_code == (200 if wanted == "hf_good" else 403)
        assert b"hf_good" not in await response.get_data()

    drive(tmp_path, scenario)


def test_output_formats(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        await caller.answer(CHAT, {"messages": MESSAGES, "response_format": {"type": "text"}})
        assert caller.api.engine.submits[-1].grammar is None
        await caller.answer(CHAT, {"messages": MESSAGES, "response_format": {"type": "json_object"}})
        grammar = caller.api.engine.submits[-1].grammar
        assert grammar is not None
        assert grammar.kind == "json_schema"
        bad = [
            ({}, "missing_required_parameter", "response_format.type"),
            ({"type": 3}, "invalid_type", "response_format.type"),
            ({"type": "haiku"}, "invalid_value", "response_format.type"),
            ({"type": "json_object", "schema": {"type": "objekt"}}, "invalid_grammar", "response_format"),
            ({"type": "json_object", "schema": {"$ref": "http://x/y"}}, "invalid_grammar", "response_format"),
        ]
        for response_format, code, param in bad:
            found = await caller.error(CHAT, {"messages": MESSAGES, "response_format": response_format, "stream": True})
            assert found == (400, code, param)

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


def test_models_by_every_name(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        listed = (await (await caller.client.get("/v1/models")).get_json())["data"]
        assert [(card["id"], card["alias"], card["parent"]) for card in listed] == [
            ("tiny", None, None),
            ("shelf:one", "one", "tiny"),
            ("shelf:two", None, "tiny"),
        ]
        names = {
            "tiny": "tiny",
            "one": "shelf:one",
            "shelf:one": "shelf:one",
            "shelf%3Aone": "shelf:one",
            "org/name": "shelf:org/name",
            "org%2Fname": "shelf:org/name",
            "shelf:org%2Fname%40main": "shelf:org/name@main",
        }
        for name, wanted in names.items():
            response = await caller.client.get(f"/v1/models/{name}")
            assert (response.status_code, (await response.get_json())["id"]) == (200, wanted)
        for name, status in {"shelf:zzz": 404, "zzz": 404, "shelf:secret": 403, "a//b": 404}.items():
            response = await caller.client.get(f"/v1/models/{name}")
            assert response.status_code == status
            assert (await response.get_json())["error"]["param"] == "model"

    drive(tmp_path, scenario)


def test_every_answer_has_a_request_id(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        for path in ("/health", "/nope", "/v1/models/zzz"):
            own = await caller.client.get(path, headers={"x-request-id": "my-id.1"})
            assert own.headers["x-request-id"] == "my-id.1"
            for strange in ("", "a b", "x" * 200, "ü"):
                other = await caller.client.get(path, headers={"x-request-id": strange})
                assert other.headers["x-request-id"].startswith("req_")
        stream = await caller.post(CHAT, {"messages": MESSAGES, "stream": True}, **{"x-request-id": "s"})
        assert stream.headers["x-request-id"] == "s"

    drive(tmp_path, scenario)


def test_the_frameworks_errors_have_the_same_shape(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        assert (await (await caller.client.get("/nope")).get_json())["error"]["code"] == "not_found"
        wrong_method = await caller.client.get(CHAT)
        assert (wrong_method.status_code, wrong_method.headers["allow"]) == (405, "OPTIONS, POST")
        assert (await wrong_method.get_json())["error"]["code"] == "method_not_allowed"
        assert (await caller.error(COMPLETIONS, {"prompt": "x" * 2000}))[:2] == (413, "payload_too_large")
        form = await caller.client.post(COMPLETIONS, form={"prompt": "x"})
        assert (form.status_code, (await form.get_json())["error"]["code"]) == (415, "unsupported_media_type")

    drive(tmp_path, scenario, settings=Settings(max_body="1KB"))


def test_ignored_fields_are_listed(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        for stream in (False, True):
            response = await caller.post(COMPLETIONS, {"prompt": "a", "prediction": {}, "a\r\nb": 1, "stream": stream})
            assert response.status_code == 200
            assert response.headers["x-motet-ignored"] == "prediction,a%0D%0Ab"
        plain = await caller.post(COMPLETIONS, {"prompt": "a"})
        assert "x-motet-ignored" not in plain.headers

    drive(tmp_path, scenario)
