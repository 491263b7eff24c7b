"""POST /v1/embeddings: every form of input, both encodings, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI
from support.api_caller import Caller, drive
from support.scripted_server import scripted_server

from motet.api.routes.embeddings import pooling
from motet.core.settings import Settings

EMBEDDINGS = "/v1/embeddings"


def unit(*numbers: float) -> list[float]:
    length = math.sqrt(sum(x * x for x in numbers))
    return [x / length for x in numbers]


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("ab", [[0, 0]]),
        (["ab", "c"], [[0, 0], [0]]),
        ([5, 6, 7], [[5, 6, 7]]),
        ([[5], [6, 7]], [[5], [6, 7]]),
    ],
)
def test_every_form_of_input(tmp_path: Path, given: Any, prompts: list[list[int]]) -> None:
    async def scenario(caller: Caller) -> None:
        answer = await caller.answer(EMBEDDINGS, {"input": given})
        submits = caller.api.engine.submits
        assert [len(submit.prompt) for submit in submits] == [len(prompt) for prompt in prompts]
        assert all(submit.pooling == "last" and submit.params.max_tokens == 0 for submit in submits)
        assert [entry["index"] for entry in answer["data"]] == list(range(len(prompts)))
        first = submits[0].prompt
        assert answer["data"][0]["embedding"] == pytest.approx(unit(len(first), first[0], first[-1], 0))
        count = sum(map(len, prompts))
        assert answer["usage"] == {"prompt_tokens": count, "total_tokens": count}
        assert (answer["object"], answer["data"][0]["object"]) == ("list", "embedding")

    drive(tmp_path, scenario)


def test_base64_is_the_same_in_32_bits(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        plain = await caller.answer(EMBEDDINGS, {"input": "ab", "model": "one"})
        packed = await caller.answer(EMBEDDINGS, {"input": "ab", "model": "one", "encoding_format": "base64"})
        numbers = struct.unpack("<4f", base64.b64decode(packed["data"][0]["embedding"]))
        assert list(numbers) == pytest.approx(plain["data"][0]["embedding"])
        assert plain["data"][0]["embedding"][3] > 0, "the adapter applies"
        short = await caller.answer(EMBEDDINGS, {"input": "ab", "model": "one", "dimensions": 2})
        assert short["data"][0]["embedding"] == pytest.approx(unit(*plain["data"][0]["embedding"][:2]))

    drive(tmp_path, scenario)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "input"),
        ({"input": ""}, 400, "input"),
        ({"input": []}, 400, "input"),
        ({"input": ["a", ""]}, 400, "input[1]"),
        ({"input": ["a", 3]}, 400, "input"),
        ({"input": [9999]}, 400, "input"),
        ({"input": "a" * 5000}, 400, "input"),
        ({"input": ["a"] * 2049}, 400, "input"),
        ({"input": "a", "encoding_format": "hex"}, 400, "encoding_format"),
        ({"input": "a", "dimensions": 0}, 400, "dimensions"),
        ({"input": "a", "dimensions": 9}, 400, "dimensions"),
        ({"input": "a", "model": "no such"}, 404, "model"),
        ({"input": "a", "messages": [1]}, 400, "messages"),
        ({"input": "a", "model": "secret"}, 404, "model"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, body: dict[str, Any], status: int, param: str) -> None:
    async def scenario(caller: Caller) -> None:
        found = await caller.error(EMBEDDINGS, body)
        assert (found[0], found[2]) == (status, param)
        assert caller.api.engine.running == set()

    drive(tmp_path, scenario)


def test_a_client_that_leaves_ends_its_sequences(tmp_path: Path) -> None:
    async def main() -> None:
        async with scripted_server(tmp_path) as server:
            engine = server.api.engine
            engine.step_seconds = 30
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            body = b'{"model": "", "input": ["a", "b"]}'
            head = f"POST {EMBEDDINGS} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            writer.write(head.encode() + f"content-length: {len(body)}\r\n\r\n".encode() + body)
            async with asyncio.timeout(5):
                while len(engine.running) < 2:
                    await asyncio.sleep(0.01)
                writer.close()
                while engine.running:
                    await asyncio.sleep(0.01)

    asyncio.run(main())


def test_the_sdk_reads_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with scripted_server(tmp_path) as server:
            client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none")
            packed = await client.embeddings.create(model="", input=["ab", "c"])
            plain = await client.embeddings.create(model="", input=["ab", "c"], encoding_format="float")
            for one, other in zip(packed.data, plain.data, strict=True):
                assert one.embedding == pytest.approx(other.embedding)
            await client.close()

    asyncio.run(main())


def test_how_vectors_are_pooled(tmp_path: Path) -> None:
    assert pooling("auto", tmp_path) == "last"
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    assert pooling("auto", tmp_path) == "mean"
    assert pooling("last", tmp_path) == "last"
    (tmp_path / "api").mkdir()

    async def scenario(caller: Caller) -> None:
        await caller.answer(EMBEDDINGS, {"input": "a"})
        assert caller.api.engine.submits[-1].pooling == "mean"

    drive(tmp_path / "api", scenario, settings=Settings(pooling="mean"))
