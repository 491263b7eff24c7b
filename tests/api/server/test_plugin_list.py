"""The table of `motet plugins`."""

import os
import subprocess
import sys

from motet.api.server.plugin_list import plugin_table
from motet.core.plugin_registry import PluginRegistry


def test_every_name_stands_under_its_hook_with_its_owner() -> None:
    plugins = PluginRegistry.load(["motet.plugins.demo", "motet.plugins.tool_parsers.hermes"], installed=False)
    assert [line.split() for line in plugin_table(plugins).splitlines()] == [
        ["HOOK", "NAME", "OWNER"],
        ["register_adapter_sources", "demo", "motet.plugins.demo"],
        ["register_tool_parsers", "hermes", "motet.plugins.tool_parsers.hermes"],
    ]


def test_a_closed_pipe_causes_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "motet", "plugins"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=60)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")
