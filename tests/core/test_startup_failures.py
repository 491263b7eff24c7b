"""One line for each failure to start, with what to do."""

from __future__ import annotations

import errno
import os
import signal
import subprocess

import pytest

from motet.core.startup_failures import ended_at_start, startup_failure


class OutOfMemoryError(RuntimeError):
    """As torch's: known by its name, since this module knows no torch."""


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (MemoryError(), "--kv-memory, --adapter-slots"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), "--shards"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), "--kv-memory"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "--kv-memory"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/cache/kernels/x.nbi"), "MOTET_CACHE"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/cache/kernels"), "MOTET_CACHE"),
        (ImportError("flash_attn_2_cuda.so: undefined symbol: _ZN3c105Error"), "make install-cuda"),
        (RuntimeError("Failed to find C compiler. Please specify via CC environment variable."), "python3-dev"),
        (subprocess.CalledProcessError(1, ["gcc", "main.c"]), "python3-dev"),
        (RuntimeError("CUDA error: no kernel image is available for execution on the device"), "--device cpu"),
        (KeyError("oddity"), "--log-level debug"),
    ],
)
def test_it_is_one_line_with_the_remedy(error: Exception, remedy: str) -> None:
    message = startup_failure(error, "engine", "loading the model").message
    assert message.startswith("the engine failed to start (loading the model): ")
    assert remedy in message
    assert type(error).__name__ in message


def test_a_long_message_is_shortened_to_one_line() -> None:
    message = startup_failure(RuntimeError("one\ntwo\n" * 10_000), "engine", "loading the model").message
    assert "\n" not in message
    assert len(message) < 600


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (-signal.SIGKILL, "SIGKILL while it started (loading the model); memory has probably run out: lower --kv-mem"),
        (-signal.SIGILL, "SIGILL"),
        (-signal.SIGTERM, "SIGTERM"),
        (1, "exit code 1"),
    ],
)
def test_a_process_that_ended_without_a_message(code: int, said: str) -> None:
    assert said in ended_at_start("engine", code, "loading the model").message
