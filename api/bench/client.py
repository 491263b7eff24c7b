"""The client of `motet bench`: keeps a number of streaming requests going and notes when things arrive."""

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
    """The server, and how hard to push it. `timeout` (seconds) bounds the whole run."""

    url: str = "http://127.0.0.1:8080"
    concurrency: int = 8
    timeout: float = 600.0
    api_key: str = ""

    def __repr__(self) -> str:
        """Without the key."""
        return f"Target(url={self.url!r}, concurrency={self.concurrency}, timeout={self.timeout})"

    def client(self) -> httpx2.AsyncClient:
        """A client with one connection for each concurrent request. No proxy: it would be measured too."""
        return httpx2.AsyncClient(
            base_url=self.url.rstrip("/").removesuffix("/v1"),
            headers={"authorization": f"Bearer {self.api_key}"} if self.api_key else {},
            timeout=httpx2.Timeout(None, connect=CONNECT_SECONDS),
            limits=httpx2.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency),
            trust_env=False,
        )


@dataclass(frozen=True)
class Outcome:
    """One request as its client saw it; all times in seconds on one clock.

    `arrivals` are the times at which events with text came. The token counts are the server's own, or, if it
    gives none, the number of those events. A request with an `error` counts for nothing else.
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
    """What matters of an event of either route: some text, the token counts, or an error."""

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
    """The first model that the server lists, its base model as a rule; empty if it has no such list.

    Raises StartupError when there is no server, or when it does not accept the key.
    """
    try:
        async with target.client() as client:
            response = await client.get("/v1/models", timeout=CONNECT_SECONDS)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        raise StartupError(f"--url {target.url}: no server answers there: {reason}", param="url") from error
    if response.status_code in (401, 403):
        raise StartupError(f"--url {target.url}: the server wants another --api-key", param="api_key")
    try:
        models = msgspec.json.decode(response.content, type=_Models).data
    except msgspec.MsgspecError:
        return ""
    return models[0].id if models else ""


async def drive(target: Target, workload: Workload) -> list[Outcome]:
    """Send every request of `workload`, `concurrency` at a time, each as soon as one before it has ended.

    Returns one outcome for each that was sent: what fails, or is cut off by the time limit, is an outcome as well.
    """
    outcomes: list[Outcome] = []
    numbers = iter(range(workload.requests))
    now = asyncio.get_running_loop().time
    deadline = now() + target.timeout

    async def worker(client: httpx2.AsyncClient) -> None:
        for index in numbers:
            if now() >= deadline:
                return
            outcomes.append(await _ask(client, workload, index, deadline))

    async with target.client() as client:
        await asyncio.gather(*(worker(client) for _ in range(min(target.concurrency, workload.requests))))
    return outcomes


async def _ask(client: httpx2.AsyncClient, workload: Workload, index: int, deadline: float) -> Outcome:
    """One request, from its sending to the end of its stream, or to the deadline (on the event loop's clock)."""
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
                        continue  # read to the end: only then can the connection be used again
                    chunk = _decode_chunk(event.data)
                    if chunk.error is not None:
                        error = _shown(chunk.error)
                    if any(choice.has_text() for choice in chunk.choices):
                        arrivals.append(time.perf_counter())
                    usage = chunk.usage or usage
    except (httpx2.HTTPError, msgspec.MsgspecError) as failure:
        error = f"{type(failure).__name__}: {failure}"
    except TimeoutError:
        error = "not finished when --timeout was over"
    if not error and not ended:
        error = f"the stream broke off before {STREAM_END}"
    end = time.perf_counter()
    if error:
        return Outcome(start, end, error=error)
    counts = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, len(arrivals))
    return Outcome(start, end, tuple(arrivals), *counts)


async def _refusal(response: httpx2.Response) -> str:
    """What an answer that is no stream says, in one line."""
    body = b""
    async for part in response.aiter_bytes():
        body = (body + part)[:MAX_ERROR_BYTES]
    try:
        said = _shown(_decode_chunk(body).error or body.decode(errors="replace"))
    except msgspec.MsgspecError:
        said = _shown(body.decode(errors="replace"))
    return f"HTTP {response.status_code}: {said}"


def _shown(error: _Failure | str) -> str:
    message = error if isinstance(error, str) else error.message
    return " ".join(message.split())[:MAX_ERROR_CHARACTERS] or "no reason given"
