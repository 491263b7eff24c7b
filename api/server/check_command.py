"""The command `motet check`: finds adapters in directories, and reports which of them fit a base model."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from motet.core.adapter_check import Verdict
from motet.core.errors import StartupError

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model", "adapters.safetensors", "lora.safetensors")
"""A directory with a file of such a prefix counts as an adapter, in whatever format."""


def add_check_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `motet check`."""
    parser.add_argument(
        "directories", nargs="+", metavar="DIR", help="an adapter directory, or a directory that contains some"
    )
    parser.add_argument("--model", default=argparse.SUPPRESS, help="the base model, as in `motet serve`")
    parser.add_argument(
        "--max-adapter-rank", default=argparse.SUPPRESS, metavar="INT", help="the highest rank, as in `motet serve`"
    )
    parser.add_argument("--format", choices=("text", "json"), default="text", help="output (default: text)")


def find_adapters(directories: Sequence[str]) -> list[str]:
    """Every directory at or below `directories` that contains an adapter, sorted. Raises StartupError.

    Does not follow links to directories, and skips hidden directories.
    """
    adapters: set[str] = set()
    for directory in directories:
        if not Path(directory).is_dir():
            raise StartupError(f"motet check: {directory} is not a directory")
        adapters.update(_below(directory))
    if not adapters:
        raise StartupError(
            f"motet check: no adapter in {', '.join(directories)} (expected {CONFIG} or adapter_model.*)"
        )
    return sorted(adapters)


def report(verdicts: Sequence[Verdict], model: str, output: str) -> str:
    """The verdicts as text with a summary, or as JSON."""
    fit = sum(verdict.fits for verdict in verdicts)
    if output == "json":
        body = {"model": model, "fit": fit, "refused": len(verdicts) - fit, "adapters": verdicts}
        return msgspec.json.format(msgspec.json.encode(body), indent=2).decode()
    lines = [line for verdict in verdicts for line in _lines(verdict)]
    summary = f"{len(verdicts)} adapters for {model}: {fit} fit, {len(verdicts) - fit} refused"
    return "\n".join([*lines, summary])


def _below(directory: str) -> Iterator[str]:
    for path, directories, names in os.walk(directory):
        directories[:] = [name for name in directories if not name.startswith(".")]
        if any(name == CONFIG or name.startswith(WEIGHTS) for name in names):
            yield path


def _lines(verdict: Verdict) -> Iterator[str]:
    yield f"{'fits' if verdict.fits else 'refused':8} {_printable(verdict.directory)}"
    if verdict.message:
        yield f"         {_printable(verdict.message)}"
    yield from (f"         warning: {_printable(warning)}" for warning in verdict.warnings)


def _printable(text: str) -> str:
    """Text without control characters: messages quote files from others."""
    return "".join(character if character.isprintable() else "�" for character in text)
