"""Runs the streams of a request's sequences side by side and merges what they yield."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Protocol, TypeVar


class Delta(Protocol):
    """What a stream yields."""

    @property
    def more(self) -> bool:
        """Whether the stream's next delta has arrived too."""


D = TypeVar("D", bound=Delta)


async def merge(streams: Sequence[AsyncGenerator[D, None]]) -> AsyncGenerator[tuple[int, D], None]:
    """Run `streams` side by side and yield (stream number, delta) as they arrive; the first failure ends them all.

    Deltas of one stream that have arrived together are yielded one after another, with nothing between them.
    """
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for delta in only:
                yield 0, delta
        return
    # Unread deltas must stay with the engine's client, which limits them. Size 1, so that the streams take turns.
    queue: asyncio.Queue[tuple[int, list[D]] | Exception | None] = asyncio.Queue(1)

    async def pump(index: int, stream: AsyncGenerator[D, None]) -> None:
        together: list[D] = []
        try:
            async with aclosing(stream):
                async for delta in stream:
                    together.append(delta)
                    if not delta.more:
                        await queue.put((index, together))
                        together = []
            await queue.put(None)
        except Exception as error:
            await queue.put(error)

    tasks = [asyncio.create_task(pump(index, stream)) for index, stream in enumerate(streams)]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if item is None:
                running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                for delta in item[1]:
                    yield item[0], delta
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
