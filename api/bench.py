"""`motet bench`."""

from __future__ import annotations

import argparse


def add_bench_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags."""


def run_bench(arguments: argparse.Namespace) -> None:
    """Run."""
