"""Uploads to the pools of a GPU, with stand-ins for streams and events: the right rows, in few operations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from motet.engine.lora import adapter_upload
from motet.engine.lora.adapter_upload import AdapterUpload, PoolWrite, upload_capacity
from motet.engine.staging import StagingBuffer

CPU = torch.device("cpu")
LAYERS, WIDTHS = 6, (24, 40, 24)


class Device:
    """What the streams and events of a fake GPU were used for, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        log, sent = self.log, StagingBuffer.send

        class Stream:
            def __init__(self, device: torch.device) -> None: ...

            def wait_event(self, event: Event) -> None:
                log.append(f"wait for {event.name}")

        class Event:
            def __init__(self, name: str = "done", blocking: bool = True) -> None:
                self.name = name
                assert blocking, "the thread would spin"

            def record(self) -> None:
                log.append(f"record {self.name}")

            def synchronize(self) -> None:
                log.append(f"the host waits for {self.name}")

        @contextmanager
        def stream(_: Stream) -> Iterator[None]:
            log.append("enter the stream")
            yield
            log.append("leave the stream")

        def send(staging: StagingBuffer) -> None:
            log.append("copy")
            sent(staging)

        for name, stand_in in (("Stream", Stream), ("Event", Event), ("stream", stream)):
            monkeypatch.setattr(adapter_upload.torch.cuda, name, stand_in)
        monkeypatch.setattr(StagingBuffer, "send", send)
        self.after = Event("cleared")


class PoolOperations(TorchDispatchMode):
    """Logs the operations on pools."""

    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self._log = log

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func._overloadpacket.__name__ == "index_copy_":
            self._log.append("index_copy_")
        return func(*args, **(kwargs or {}))


def writes_to(pools: list[Tensor], dtype: torch.dtype) -> list[PoolWrite]:
    """For each layer, rows all over each pool, in an adapter's dtype."""
    generator = torch.Generator().manual_seed(1)
    order = [torch.randperm(len(pool), generator=generator).tolist() for pool in pools]
    return [
        PoolWrite(pool, order[i][5 * layer : 5 * layer + 5 - i], torch.randn(5 - i, pool.shape[1]).to(dtype))
        for layer in range(LAYERS)
        for i, pool in enumerate(pools)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("capacity", [1 << 20, 1500])
def test_the_right_rows_are_written(dtype: torch.dtype, capacity: int, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    pools, expected = ([torch.zeros(50, width, dtype=dtype) for width in WIDTHS] for _ in range(2))
    writes = writes_to(pools, torch.float32)
    for write in writes:
        index = next(i for i, pool in enumerate(pools) if pool is write.pool)
        expected[index][write.rows] = write.tensor.to(dtype)
    AdapterUpload(capacity, CPU).write(writes, device.after)  # type: ignore[arg-type]
    for pool, right in zip(pools, expected, strict=True):
        assert torch.equal(pool, right)
    assert device.log.count("copy") > 3 or capacity > 1500


def test_one_copy_and_one_operation_for_each_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    pools = [torch.zeros(50, width, dtype=torch.bfloat16) for width in WIDTHS]
    writes = writes_to(pools, torch.bfloat16)
    capacity = upload_capacity(max(w.nbytes for w in writes), sum(w.nbytes for w in writes), len(pools))
    with PoolOperations(device.log):
        AdapterUpload(capacity, CPU).write(writes, device.after)  # type: ignore[arg-type]
    assert device.log == [
        "enter the stream", "wait for cleared", "copy", *["index_copy_"] * len(pools), "record done",
        "leave the stream", "the host waits for done",
    ]  # fmt: skip


def test_the_capacity_is_bounded_and_holds_every_write() -> None:
    assert upload_capacity(10, 1000, 14) < 3000
    assert upload_capacity(10, 1 << 40, 14) < 130 << 20
    assert upload_capacity(1 << 40, 1 << 41, 14) > 1 << 40
