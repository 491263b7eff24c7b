"""Describes an unexpected failure during startup in one line, with a suggestion what to do."""

from __future__ import annotations

import errno
import os
import signal
import subprocess

from motet.core.errors import StartupError

MAX_MESSAGE = 400
"""In characters, of a library's message; those of torch can be very long."""

OUT_OF_MEMORY = "lower --kv-memory, --adapter-slots or --max-sequences, or use more --shards (each on its own GPU)"

_MEMORY_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory")
_COMPILER_WORDS = ("Python.h", "C compiler", "gcc", "g++")


def startup_failure(error: Exception, process: str, phase: str) -> StartupError:
    """The StartupError for an `error` that `process` (such as `engine`) raised during the startup phase `phase`."""
    description = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(":")[:MAX_MESSAGE]
    return StartupError(f"the {process} failed to start ({phase}): {description}; {_remedy(error)}")


def ended_at_start(process: str, code: int, phase: str) -> StartupError:
    """The StartupError for a process that ended with exit code `code` (negative: a signal) during startup."""
    if code >= 0:
        return StartupError(f"the {process} ended with exit code {code} while it started ({phase})")
    name = signal.Signals(-code).name
    remedy = "please report it"
    if -code == signal.SIGKILL:
        remedy = f"memory has probably run out: {OUT_OF_MEMORY}"
    elif -code in (signal.SIGILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT):
        remedy = "a library does not support this machine, or a cached file is damaged: reinstall Motet, or set"
        remedy += " MOTET_CACHE to an empty directory"
    return StartupError(f"the {process} was ended by {name} while it started ({phase}); {remedy}")


def _remedy(error: Exception) -> str:
    message = str(error)
    number = error.errno if isinstance(error, OSError) else None
    memory = type(error).__name__ == "OutOfMemoryError" or any(words in message.lower() for words in _MEMORY_WORDS)
    if memory or isinstance(error, MemoryError) or number == errno.ENOMEM:
        return OUT_OF_MEMORY
    if number in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in message:
        return "free space on that disk, or set MOTET_CACHE to a directory on another disk"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "give this user access to it, or set MOTET_CACHE to another directory"
    if "flash_attn" in message:
        return "install flash-attn for this version of PyTorch with `make install-cuda`, or use --device cpu"
    if isinstance(error, subprocess.CalledProcessError) or any(words in message for words in _COMPILER_WORDS):
        return "Triton needs a C compiler and Python's header files (packages gcc and python3-dev)"
    if "CUDA" in message or "NCCL" in message:
        return "check the GPU and its driver with nvidia-smi, or use --device cpu"
    return "--log-level debug shows the traceback"
