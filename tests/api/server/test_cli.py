"""The command line: help by topic, and the error for an unknown flag."""

from __future__ import annotations

import argparse
import dataclasses
import re

import pytest

from motet.api.server.cli import build_parser, parse_arguments
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


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("serve --prot 18080", "motet serve: error: unrecognized arguments: --prot 18080; did you mean --port?"),
        ("serve --adapter-rot=/srv", "unrecognized arguments: --adapter-rot=/srv; did you mean --adapter-root?"),
        ("serve --weather", "motet serve: error: unrecognized arguments: --weather\n"),
        ("check runs --modle x", "motet check: error: unrecognized arguments: --modle x; did you mean --model?"),
    ],
)
def test_an_unknown_flag_is_answered_by_its_command_with_the_nearest_one(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_arguments(line.split())
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_known_flags_are_parsed() -> None:
    arguments = vars(parse_arguments(["serve", "--port", "18080"]))
    assert arguments.pop("run").__name__ == "_serve"
    assert arguments == {"port": "18080"}
