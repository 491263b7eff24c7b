"""Uploads: what is refused before it is read, the space reserved while they arrive, and their formats."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI
from support.batch_calls import CHAT, drive, finished, jsonl, line
from support.scripted_server import Running

from motet.api.http import body_limits
from motet.api.storage import upload_reservations
from motet.api.storage.database import Database
from motet.api.storage.upload_reservations import UploadReservations
from motet.core.errors import Overloaded, PayloadTooLarge
from motet.core.settings import Settings

HOUR = {"anchor": "created_at", "seconds": 3600}


def begun(length: int, sent: bytes = b"") -> bytes:
    """The beginning of an upload whose body has `length` bytes."""
    head = "POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=b\r\n"
    return f"{head}content-length: {length}\r\n\r\n".encode() + sent


def under_way(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT COUNT(*) FROM uploads").fetchone()[0])


def test_fields_of_an_upload_are_checked_and_unknown_ones_are_named(tmp_path: Path) -> None:
    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        create: Any = client.files.create
        for expires, param in (
            ({"anchor": "created_at", "seconds": 3599}, "expires_after.seconds"),
            ({"anchor": "created_at", "seconds": 2_592_001}, "expires_after.seconds"),
            ({"anchor": "created_at", "seconds": "soon"}, "expires_after.seconds"),
            ({"anchor": "today", "seconds": 3600}, "expires_after.anchor"),
            ({"anchor": "created_at"}, "expires_after.seconds"),
        ):
            with pytest.raises(openai.BadRequestError) as wrong:
                await create(file=("a", b"x"), purpose="batch", expires_after=expires)
            assert wrong.value.param == param
        raw = await client.files.with_raw_response.create(
            file=("a", b"x"), purpose="batch", extra_body={"colour": "red", "expires_after": HOUR}
        )
        assert raw.headers["x-motet-ignored"] == "colour"
        async with httpx2.AsyncClient(base_url=server.url) as http:
            answer = await http.post("/v1/files", data={"purpose": "batch", "file": "text"}, files={"x": ("x", b"x")})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file")
        assert "file name" in answer.json()["error"]["message"]

    drive(tmp_path, scenario)


@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        (Settings(max_file="1MiB"), "payload_too_large", "--max-file)"),
        (Settings(max_files="1MiB"), "storage_full", "--max-files)"),
    ],
)
def test_an_upload_too_large_is_refused_before_it_is_read(
    tmp_path: Path, settings: Settings, code: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_limits, "BODY_SECONDS", 0.2)

    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(begun(2 << 20))
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.startswith(b"HTTP/1.1 413")
        assert f'"code":"{code}"'.encode() in answer
        assert said.encode() in answer
        assert b'"param":"file"' in answer
        writer.close()

    drive(tmp_path, scenario, settings)


@pytest.mark.parametrize("settings", [Settings(max_file="1MiB"), Settings(max_files="1MiB")])
def test_who_is_refused_while_sending_sees_why(tmp_path: Path, settings: Settings) -> None:
    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        with pytest.raises(openai.APIStatusError) as refused:
            await client.files.create(file=("a", b"x" * (30 << 20)), purpose="batch")
        assert refused.value.status_code == 413

    drive(tmp_path, scenario, settings)


def test_a_file_just_over_the_limit_is_refused(tmp_path: Path) -> None:
    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        with pytest.raises(openai.APIStatusError) as large:
            await client.files.create(file=("a", b"x" * 1001), purpose="batch")
        assert (large.value.status_code, large.value.param) == (413, "file")
        assert "1000 bytes (--max-file)" in large.value.message
        assert (await client.files.create(file=("a", b"x" * 1000), purpose="batch")).bytes == 1000

    drive(tmp_path, scenario, Settings(max_file="1KB"))


def test_a_form_with_too_much_beside_the_file_is_refused_as_that(tmp_path: Path) -> None:
    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        async with httpx2.AsyncClient(base_url=server.url) as http:
            for data in ({"purpose": "x" * 70_000}, {str(n): "x" for n in range(9)}):
                answer = await http.post("/v1/files", data=data, files={"file": ("a", b"x")})
                assert answer.status_code == 413
                assert "form" in answer.json()["error"]["message"]

    drive(tmp_path, scenario)


def test_uploads_that_arrive_take_room_and_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_reservations, "MAX_UPLOADS_OF_OWNER", 2)

    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        connections = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(2)]

        async def arrive(number: int, length: int) -> None:
            connections[number][1].write(begun(length))
            async with asyncio.timeout(10):
                while await server.api.services.database.run(under_way) <= number:
                    await asyncio.sleep(0.01)

        async def refusal() -> openai.APIStatusError:
            with pytest.raises(openai.APIStatusError) as refused:
                await client.files.create(file=("a", b"x" * 150_000), purpose="batch")
            return refused.value

        await client.files.create(file=("a", b"x"), purpose="batch")
        await arrive(0, 900_000)
        full = await refusal()
        assert (full.status_code, full.code) == (413, "storage_full")
        await arrive(1, 1000)
        busy = await refusal()
        assert (busy.status_code, busy.code, busy.response.headers["retry-after"]) == (429, "too_many_uploads", "1")
        for _, writer in connections:
            writer.close()
        async with asyncio.timeout(10):
            while True:  # until both are noticed to have left
                with suppress(openai.APIStatusError):
                    await client.files.create(file=("b", b"x" * 150_000), purpose="batch")
                    break
                await asyncio.sleep(0.05)

    drive(tmp_path, scenario, Settings(max_files="1MB"))


def test_processes_count_uploads_together_and_forget_those_that_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload_reservations, "LEASE_SECONDS", 0.6)
    monkeypatch.setattr(upload_reservations, "MAX_UPLOADS", 2)

    async def main() -> None:
        one, two = Database(tmp_path, 1_000_000), Database(tmp_path, 1_000_000)
        async with UploadReservations(one).reserved("", 800_000):
            await asyncio.sleep(1)  # longer than a lease, which is renewed
            with pytest.raises(PayloadTooLarge):
                await two.run(lambda connection: two.check_room(connection, 400_000, "file"))
            async with UploadReservations(two).reserved("", 10):
                with pytest.raises(Overloaded):
                    async with UploadReservations(two).reserved("bob", 10):
                        pass
        await one.run(
            lambda connection: connection.execute("INSERT INTO uploads VALUES ('dead', 'a', 800000, ?)", (time.time(),))
        )
        async with UploadReservations(two).reserved("bob", 400_000):
            pass
        await one.close()
        await two.close()

    asyncio.run(main())


def test_an_upload_must_make_some_pace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_limits, "BODY_SECONDS", 0.2)

    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(begun(body_limits.UPLOAD_PACE, b"--b\r\n"))
        start = time.monotonic()
        answer = await asyncio.wait_for(reader.read(), 20)
        assert answer.startswith(b"HTTP/1.1 408")
        assert time.monotonic() - start > 1, "a second for each 64 KiB"
        writer.close()

    drive(tmp_path, scenario)


def test_uploads_have_no_part_in_the_limit_of_other_bodies(tmp_path: Path) -> None:
    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        assert (await client.files.create(file=("a", b"x" * 500_000), purpose="batch")).bytes == 500_000

    drive(tmp_path, scenario, Settings(max_body="2KB"))


def test_a_token_in_the_input_of_a_batch_is_refused_and_not_stored(tmp_path: Path) -> None:
    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"api_token": {}}}}}]
        harmless = jsonl(line("a", content='"api_token"'), line("b", tools=tools), line("c", api_token=None))
        for content in (harmless + b'\nnot JSON, with "api_token"', b'\xff"api_token"'):
            await client.files.create(file=("a", content), purpose="batch")
        secret = harmless + b"\n" + jsonl(line("d", api_token="hf_secret"))
        with pytest.raises(openai.BadRequestError) as refused:
            await client.files.create(file=("a", secret), purpose="batch")
        assert (refused.value.param, refused.value.code) == ("file", "token_in_file")
        assert "line 4: the input of a batch is stored" in refused.value.message
        directory = server.api.services.database.directory
        assert not any(b"hf_secret" in path.read_bytes() for path in directory.rglob("*") if path.is_file())

        hidden = secret.replace(b"api_token", b"api_\\u0074oken")  # found when the line is read
        file = await client.files.create(file=("a", hidden), purpose="batch")
        batch = await client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        ended = await finished(client, batch.id)
        assert ended.status == "failed"
        assert [(e.code, e.line, e.param) for e in ended.errors.data] == [("token_in_file", 4, "body.api_token")]

    drive(tmp_path, scenario)


def test_an_upload_is_written_beside_the_files_while_it_arrives(tmp_path: Path) -> None:
    """Not into the directory for temporary files, which `--max-files` does not limit."""

    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        directory = server.api.services.database.directory / "files"
        form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"x" * 600_000
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(begun(1_000_000, form))
        async with asyncio.timeout(10):
            while not any(path.stat().st_size > 500_000 for path in directory.glob("*.part")):
                await asyncio.sleep(0.01)
            writer.close()
            while list(directory.iterdir()):
                await asyncio.sleep(0.01)

    drive(tmp_path, scenario)
