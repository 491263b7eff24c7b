"""`python -m support.full_disk ROOT`: a server on a small disk, mounted at ROOT/data, which becomes full.

Runs in a separate process, since the mount is visible only there. Raises AssertionError on failure.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from support.batch_calls import drive
from support.scripted_server import Running

MIB = 1 << 20


def fill(path: Path) -> None:
    """Fill the disk of `path` completely."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


async def fails(awaitable: Any) -> None:
    with pytest.raises(openai.InternalServerError) as full:
        await awaitable
    assert (full.value.status_code, full.value.code) == (503, "storage_full"), full.value
    assert "--data-dir" in full.value.message


async def scenario(client: AsyncOpenAI, server: Running) -> None:
    """Check what works before, while and after the disk is full."""
    data = server.api.services.database.directory
    file = await client.files.create(file=("a", bytes(MIB)), purpose="batch")
    kept = await client.responses.create(model="", input="hi")
    assert kept.to_dict()["store"] is True
    fill(data / "filler")

    made = await client.responses.create(model="", input="hi")
    assert (made.output_text, made.to_dict()["store"]) == ("Hello!", False)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(made.id)
    events = [event async for event in await client.responses.create(model="", input="hi", stream=True)]
    assert events[-1].type == "response.completed"
    assert {event.response.to_dict()["store"] for event in events if hasattr(event, "response")} == {False}

    for size in (10, MIB):
        await fails(client.files.create(file=("b", bytes(size)), purpose="user_data"))
    await fails(client.responses.create(model="", input="hi", background=True))
    await fails(client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h"))
    assert len((await client.files.list()).data) == 1
    assert (await client.responses.retrieve(kept.id)).output_text == "Hello!"

    await client.responses.delete(kept.id)
    await client.files.delete(file.id)
    again = await client.responses.create(model="", input="hi")
    assert again.to_dict()["store"] is True
    assert sorted(path.name for path in (data / "files").iterdir()) == []


if __name__ == "__main__":
    drive(Path(sys.argv[1]), scenario)
