"""Blocking calls: results and errors come back, and what hangs holds up nothing but its own key."""

import asyncio
import threading

import pytest

from motet.core.blocking_calls import BlockingCalls


def test_results_and_exceptions_are_returned() -> None:
    async def body() -> None:
        calls = BlockingCalls("test")
        assert await calls.run("a", lambda: 7) == 7
        with pytest.raises(KeyError, match="lost"):
            await calls.run("a", lambda: {}["lost"])
        assert (calls._keys, calls._users) == ({}, {})

    asyncio.run(body())


def test_a_hanging_call_blocks_only_its_own_key() -> None:
    released = threading.Event()

    async def body() -> None:
        calls = BlockingCalls("test", total=8, per_key=2)
        for _ in range(20):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await calls.run("hung", released.wait)
        async with asyncio.timeout(5):
            assert await calls.run("other", lambda: 7) == 7
            released.set()
            assert await calls.run("hung", lambda: 8) == 8
        while calls._users:
            await asyncio.sleep(0.001)
        assert calls._keys == {}

    asyncio.run(body())


def test_a_call_that_outlives_its_loop_raises_nothing() -> None:
    released = threading.Event()

    async def body() -> None:
        asyncio.create_task(BlockingCalls("test").run("hung", released.wait))  # noqa: RUF006
        await asyncio.sleep(0.01)

    asyncio.run(body())
    released.set()
