"""`motet serve --help`: every flag with its metavar and default, by topic."""

from __future__ import annotations

import argparse
import dataclasses
import re

from motet.api.cli import build_parser
from motet.core.settings import Settings, flag


def serve_help() -> str:
    """The help of `motet serve`, wide enough that no line is broken."""
    commands = next(action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    serve = commands.choices["serve"]
    serve.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=1000)
    return str(serve.format_help())


def test_every_flag_of_serve_has_a_metavar_a_default_and_a_topic() -> None:
    page = serve_help()
    sections = re.split(r"^(\S[^\n]*):$", page, flags=re.MULTILINE)
    topics = dict(zip(sections[1::2], sections[2::2], strict=True))
    flags = {name: text for topic, text in topics.items() if topic != "options" for name in re.findall(r"--\S+", text)}
    for setting in dataclasses.fields(Settings):
        line = re.search(
            rf"^  {flag(setting.name)} (\S+)\s[^\n]*(?:\n +[^\n-]*)?default: ", flags[flag(setting.name)], re.M
        )
        assert line, setting.name
        assert line[1] not in ("STR", "FLOAT", "INT", "TEXT", "NUMBER"), setting.name
    assert "--drain-delay SECONDS" in topics["Shutdown"]
    assert "--adapter-root DIR" in topics["Adapters"]
    assert "--adapter-root" not in topics["Engine"]
