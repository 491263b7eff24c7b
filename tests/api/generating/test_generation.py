"""How a stream opens, and how much is buffered for a client that does not read."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from support.api_caller import CHAT, COMPLETIONS, MESSAGES, Caller, drive

from motet.api.generating.merged_streams import merge
from motet.core.errors import InvalidRequest, MotetError, Overloaded, Unavailable
from motet.engine.client.text_stream import TextDelta

BODIES: list[tuple[str, dict[str, Any]]] = [(CHAT, {"messages": MESSAGES}), (COMPLETIONS, {"prompt": "a"})]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(
    ("failure", "retry"),
    [(Overloaded("too many wait"), True), (Unavailable("rank 1 died"), True), (InvalidRequest("no"), False)],
)
def test_what_the_engine_refuses_gets_its_status(
    tmp_path: Path, failure: MotetError, retry: bool, n: int, stream: bool
) -> None:
    async def scenario(caller: Caller) -> None:
        caller.api.engine.fail_after, caller.api.engine.failure = 0, failure
        for path, body in BODIES:
            response = await caller.post(path, {**body, "n": n, "stream": stream})
            error = (await response.get_json())["error"]
            assert (response.status_code, error["code"]) == (failure.status, failure.code)
            assert ("retry-after" in response.headers) is retry
        assert not caller.api.engine.running

    drive(tmp_path, scenario)


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_a_client_that_leaves_as_its_stream_opens_ends_its_sequences(
    tmp_path: Path, path: str, body: dict[str, Any]
) -> None:
    """The engine has begun by then, and nobody has begun to read."""

    async def scenario(caller: Caller) -> None:
        caller.api.engine.script = lambda request: "a long story " * 20
        caller.api.engine.step_seconds = 0.01
        opening = asyncio.Event()
        content = json.dumps({"model": "", "stream": True, "n": 2, **body}).encode()
        messages = [{"type": "http.request", "body": content, "more_body": False}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await opening.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            assert message["type"] == "http.response.start"
            assert len(caller.api.engine.running) == 2
            opening.set()
            await asyncio.Event().wait()

        scope = {"type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "path": path}
        scope |= {"query_string": b"", "headers": [(b"content-type", b"application/json"), (b"host", b"localhost")]}
        await caller.app(scope, receive, send)  # type: ignore[arg-type]
        async with asyncio.timeout(2):
            while caller.api.engine.running:
                await asyncio.sleep(0.01)
        assert caller.api.services.drain.running == 0

    drive(tmp_path, scenario)


STREAMS: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": MESSAGES, "n": 2, "logprobs": True, "stream_options": {"include_usage": True}}),
    (COMPLETIONS, {"prompt": "a", "max_tokens": 40, "echo": True, "logprobs": 1}),
    ("/v1/responses", {"input": "hi"}),
    ("/generate_stream", {"inputs": "hi", "parameters": {"max_new_tokens": 40}}),
]


async def written(caller: Caller, path: str, body: dict[str, Any]) -> list[bytes]:
    """What a stream writes, piece by piece, without what differs from one to the next."""
    pieces: list[bytes] = []
    content = json.dumps({"model": "", "stream": True, **body}).encode()
    messages = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive() -> Any:
        return messages.pop() if messages else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if message.get("body"):
            pieces.append(re.sub(rb'[0-9a-f]{24,}|"(created|completed)[a-z_]*":[0-9]+', b"", message["body"]))

    scope = {"type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "path": path}
    scope |= {"query_string": b"", "headers": [(b"content-type", b"application/json"), (b"host", b"localhost")]}
    await caller.app(scope, receive, send)  # type: ignore[arg-type]
    return pieces


@pytest.mark.parametrize(("path", "body"), STREAMS)
def test_what_came_at_once_is_written_at_once_and_reads_the_same(
    tmp_path: Path, path: str, body: dict[str, Any]
) -> None:
    async def scenario(caller: Caller) -> None:
        caller.api.engine.script = lambda request: "wind und Wellen, ja"
        singly = await written(caller, path, body)
        caller.api.engine.at_once = 7
        together = await written(caller, path, body)
        assert len(together) < len(singly) / 2
        assert sorted(b"".join(together).split(b"\n\n")) == sorted(b"".join(singly).split(b"\n\n"))

    drive(tmp_path, scenario)


def test_the_logprobs_of_a_stop_string_are_not_sent(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        caller.api.engine.script = lambda request: "wind und Wellen"
        asked = {"max_tokens": 40, "n": 2, "stop": ["und "]}
        for stream in (False, True):
            response = await caller.post(CHAT, {**asked, "messages": MESSAGES, "logprobs": True, "stream": stream})
            tokens = re.findall(r'"token":"(.*?)"', (await response.get_data()).decode())
            assert sorted(tokens) == sorted("wind " * 2)
            body = {**asked, "prompt": "a", "logprobs": 0, "echo": True, "stream": stream}
            offsets = re.findall(
                r'"text_offset":\[([0-9,]*)\]', (await (await caller.post(COMPLETIONS, body)).get_data()).decode()
            )
            assert sorted(",".join(offsets).split(",")) == sorted("012345" * 2)
        answer = await caller.answer(CHAT, {**asked, "messages": MESSAGES})
        assert answer["usage"]["completion_tokens"] == 2 * len("wind und ")

    drive(tmp_path, scenario)


def test_unread_output_is_not_pulled_from_the_engine() -> None:
    pulled = [0, 0]

    async def endless(index: int) -> AsyncGenerator[TextDelta, None]:
        while True:
            pulled[index] += 1
            yield TextDelta("x", ())

    async def main() -> None:
        async with aclosing(merge([endless(0), endless(1)])) as merged:
            assert {(await anext(merged))[0] for _ in range(10)} == {0, 1}
            for _ in range(100):
                await asyncio.sleep(0)
            assert sum(pulled) <= 10 + 1 + 2

    asyncio.run(main())


def test_a_failure_comes_between_no_deltas_that_are_there_together() -> None:
    """Who writes them does it at the last of them: what was shown to be there would be lost."""

    async def good() -> AsyncGenerator[TextDelta, None]:
        for text in "abc":
            yield TextDelta(text, (), more=text != "c")
        await asyncio.Event().wait()

    async def bad() -> AsyncGenerator[TextDelta, None]:
        raise Unavailable("gone")
        yield

    heard: list[str] = []

    async def read() -> None:
        async with aclosing(merge([good(), bad()])) as merged:
            async for _, delta in merged:
                heard.append(delta.text)

    with pytest.raises(Unavailable):
        asyncio.run(read())
    assert "".join(heard) == "abc"
