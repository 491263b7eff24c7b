"""The main loop of a process that does untrusted work; its parent's side is subprocess_worker.py.

Reads requests from stdin and writes answers to stdout, each as a length and bytes, until stdin ends. The parent limits
the time by killing the process. This module limits the memory, and the CPU time in case the parent is gone.
"""

from __future__ import annotations

import resource
import signal
import sys
from collections.abc import Callable
from typing import BinaryIO

LENGTH_BYTES = 4


def serve(answer: Callable[[bytes], bytes], memory: int, seconds: int) -> None:
    """Answer requests until stdin ends.

    `memory` is in bytes beyond the current use, `seconds` are CPU time per request. An empty message on stdout reports
    that the process is up.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent still needs this process while it drains
    _limit_memory(memory)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    write_frame(answers, b"")
    while header := requests.read(LENGTH_BYTES):
        _limit_time(seconds)
        write_frame(answers, answer(requests.read(int.from_bytes(header, "big"))))


def write_frame(stream: BinaryIO, data: bytes) -> None:
    """Write one message."""
    stream.write(len(data).to_bytes(LENGTH_BYTES, "big") + data)
    stream.flush()


def _limit_memory(memory: int) -> None:
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + memory,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_time(seconds: int) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))
