"""The client of `motet bench`: runs streaming requests concurrently and records when their events arrive."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import httpx2
import msgspec

from motet.api.bench.workload import Workload
from motet.core.errors import StartupError

CONNECT_SECONDS = 10.0
MAX_ERROR_BYTES = 64 << 10
MAX_ERROR_CHARACTERS = 200
STREAM_END = "[DONE]"


@dataclass(frozen=True)
class Target:
    """The server and the concurrency. `timeout` (seconds) limits the whole run."""

    url: str = "http://127.0.0.1:8080"
    concurrency: int = 8
    timeout: float = 600.0
    api_key: str = ""

    def __repr__(self) -> str:
        """The fields without the API key."""
        return f"Target(url={self.url!r}, concurrency={self.concurrency}, timeout={self.timeout})"

    def client(self) -> httpx2.AsyncClient:
        """A client with one connection per concurrent request, without a proxy, which would affect the times."""
        return httpx2.AsyncClient(
            base_url=self.url.rstrip("/").removesuffix("/v1"),
            headers={"authorization": f"Bearer {self.api_key}"} if self.api_key else {},
            timeout=httpx2.Timeout(None, connect=CONNECT_SECONDS),
            limits=httpx2.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency),
            trust_env=False,
        )


@dataclass(frozen=True)
class Outcome:
    """The result of one request; all times in seconds on one clock.

    `arrivals` are the times of events with text. The token counts are the server's, or, without them, the number of
    those events. A request with an `error` has no other results.
    """

    start: float
    end: float
    arrivals: tuple[float, ...] = ()
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str = ""


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None

    def has_text(self) -> bool:
        return bool(self.text or (self.delta and (self.delta.content or self.delta.reasoning_content)))


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Failure(msgspec.Struct):
    message: str = ""


class _Chunk(msgspec.Struct):
    """The fields read from an event of either route: text, token counts, or an error."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Failure | str | None = None


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


_JSON = {"content-type": "application/json"}
_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_encode = msgspec.json.Encoder().encode


async def first_model(target: Target) -> str:
    """The first model that the server lists, usually its base model; empty if it has no list of models.

    Raises StartupError if no server answers, or if it refuses the API key.
    """
    try:
        async with target.client() as client:
            response = await client.get("/v1/models", timeout=CONNECT_SECONDS)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        raise StartupError(f"--url {target.url}: no server answers there: {reason}", param="url") from error
    if response.status_code in (401, 403):
        raise StartupError(f"--url {target.url}: the server refuses this --api-key", param="api_key")
    try:
        models = msgspec.json.decode(response.content, type=_Models).data
    except msgspec.MsgspecError:
        return ""
    return models[0].id if models else ""


async def drive(target: Target, workload: Workload) -> list[Outcome]:
    """Send every request of `workload`, `concurrency` at a time.

    Returns one outcome per request that was sent, including failed ones and those that reached the time limit.
    """
    outcomes: list[Outcome] = []
    numbers = iter(range(workload.requests))
    now = asyncio.get_running_loop().time
    deadline = now() + target.timeout

    async def worker(client: httpx2.AsyncClient) -> None:
        for index in numbers:
            if now() >= deadline:
                return
            outcomes.append(await _send(client, workload, index, deadline))

    async with target.client() as client:
        await asyncio.gather(*(worker(client) for _ in range(min(target.concurrency, workload.requests))))
    return outcomes


async def _send(client: httpx2.AsyncClient, workload: Workload, index: int, deadline: float) -> Outcome:
    """Send one request and read its stream to the end or to the deadline (on the event loop's clock)."""
    start = time.perf_counter()
    arrivals: list[float] = []
    usage: _Usage | None = None
    ended = False
    error = ""
    try:
        async with (
            asyncio.timeout_at(deadline),
            client.stream("POST", workload.path, content=_encode(workload.body(index)), headers=_JSON) as response,
        ):
            if response.status_code != 200:
                error = await _refusal(response)
            else:
                async for event in httpx2.EventSource(response):
                    if event.data == STREAM_END:
                        ended = True
                        continue  # read to the end: the connection can be used again only then
                    chunk = _decode_chunk(event.data)
                    if chunk.error is not None:
                        error = _excerpt(chunk.error)
                    if any(choice.has_text() for choice in chunk.choices):
                        arrivals.append(time.perf_counter())
                    usage = chunk.usage or usage
    except (httpx2.HTTPError, msgspec.MsgspecError) as failure:
        error = f"{type(failure).__name__}: {failure}"
    except TimeoutError:
        error = "not finished within --timeout"
    if not error and not ended:
        error = f"the stream ended before {STREAM_END}"
    end = time.perf_counter()
    if error:
        return Outcome(start, end, error=error)
    counts = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, len(arrivals))
    return Outcome(start, end, tuple(arrivals), *counts)


async def _refusal(response: httpx2.Response) -> str:
    """The error of a response with another status than 200, in one line."""
    body = b""
    async for part in response.aiter_bytes():
        body = (body + part)[:MAX_ERROR_BYTES]
    try:
        reason = _excerpt(_decode_chunk(body).error or body.decode(errors="replace"))
    except msgspec.MsgspecError:
        reason = _excerpt(body.decode(errors="replace"))
    return f"HTTP {response.status_code}: {reason}"


def _excerpt(error: _Failure | str) -> str:
    message = error if isinstance(error, str) else error.message
    return " ".join(message.split())[:MAX_ERROR_CHARACTERS] or "no reason given"
