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

_MEMORY_WORDS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "cublas_status_alloc_failed",
    "cublas_status_not_initialized",  # cuBLAS could not allocate its workspace
)

_NO_DISK_SPACE = "free space on that disk, or set MOTET_CACHE to a directory on another disk"

_NO_COMPILER = "Triton needs a C compiler and Python's header files (packages gcc and python3-dev)"

_REMEDIES: tuple[tuple[tuple[str, ...], str], ...] = (
    # NCCL's message also has ENOSPC's text, so it comes before the disk.
    (("/dev/shm", "shared memory segment"), "NCCL needs more shared memory: start the container with --shm-size 4gb"),
    ((os.strerror(errno.ENOSPC),), _NO_DISK_SPACE),
    (("Duplicate GPU detected",), "each rank needs a GPU of its own: lower --shards"),
    (
        ("driver on your system is too old", "driver version is insufficient", "unsupported toolchain"),
        "update the NVIDIA driver (PyTorch for CUDA 13 needs 580 or newer; nvidia-smi shows yours), or use --device "
        "cpu",
    ),
    (
        ("Found no NVIDIA driver", "libcuda.so"),
        "install the NVIDIA driver (for a container, the NVIDIA Container Toolkit on the host), or use --device cpu",
    ),
    (("flash_attn",), "install flash-attn for this version of PyTorch with `make install-cuda`, or uninstall it"),
    (("Python.h", "C compiler"), _NO_COMPILER),
    (
        ("no kernel image is available", "invalid device function", "only supports Ampere GPUs"),
        "PyTorch or flash-attn has no code for this GPU: run `make install-cuda` on this machine (the compute "
        "capability must be 8.0 or higher), or use --device cpu",
    ),
    (("system not yet initialized",), "start the service nvidia-fabricmanager, in the driver's version"),
    (("busy or unavailable",), "another process uses the GPU exclusively: nvidia-smi shows it"),
    (("NCCL", "nccl"), "set NCCL_DEBUG=INFO to see the cause, check `nvidia-smi topo -m`, or use --shards 1"),
    (("CUDA",), "check the GPU and its driver with nvidia-smi, or use --device cpu"),
)
"""Words of an error's message, and the remedy for the first row that has one of them."""


def startup_failure(error: Exception, process: str, phase: str) -> StartupError:
    """The StartupError for an `error` that `process` (such as `engine`) raised during the startup phase `phase`."""
    description = f"{type(error).__name__}: {_without_advice(str(error))}"
    description = " ".join(description.split()).rstrip(":.")[:MAX_MESSAGE]
    return StartupError(f"the {process} failed to start ({phase}): {description}; {remedy(error)}")


def ended_at_start(process: str, code: int, phase: str) -> StartupError:
    """The StartupError for a process that ended with exit code `code` (negative: a signal) during startup."""
    if code >= 0:
        return StartupError(f"the {process} ended with exit code {code} while it started ({phase})")
    name = signal.Signals(-code).name
    advice = "please report it"
    if -code == signal.SIGKILL:
        advice = f"memory has probably run out: {OUT_OF_MEMORY}"
    elif -code in (signal.SIGILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT):
        advice = "a library does not support this machine, or a cached file is damaged: reinstall Motet, or set"
        advice += " MOTET_CACHE to an empty directory"
    return StartupError(f"the {process} was ended by {name} while it started ({phase}); {advice}")


def remedy(error: Exception) -> str:
    """What to do about an `error`, which is recognised by its class, its number, or words of its message."""
    message = str(error)
    number = error.errno if isinstance(error, OSError) else None
    memory = type(error).__name__ == "OutOfMemoryError" or any(words in message.lower() for words in _MEMORY_WORDS)
    if memory or isinstance(error, MemoryError) or number == errno.ENOMEM:
        return OUT_OF_MEMORY
    if number in (errno.ENOSPC, errno.EDQUOT):
        return _NO_DISK_SPACE
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "give this user access to it, or set MOTET_CACHE to another directory"
    if isinstance(error, subprocess.CalledProcessError):
        return _NO_COMPILER
    for words, advice in _REMEDIES:
        if any(word in message for word in words):
            return advice
    return "--log-level debug shows the traceback"


def _without_advice(message: str) -> str:
    """The message without what torch appends for developers: advice on debugging, and a C++ stack trace."""
    if message.startswith("CUDA error:"):
        return message.partition("\n")[0]
    return message.partition("Exception raised from ")[0]
