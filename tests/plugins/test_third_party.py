"""A third-party distribution, installed by pip, is found by its entry point; a broken one is named."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.third_party import fake_site, sample_site, with_plugins

SHOW = """
import json
from motet.core.adapter_source import AdapterRef
from motet.core.errors import StartupError
from motet.core.plugin_registry import PluginRegistry
from motet.core.settings import Settings
try:
    plugins = PluginRegistry.load()
    plugins.configure(Settings())
    print(json.dumps({hook: registry.owners for hook, registry in plugins.registries()}))
except StartupError as error:
    print(json.dumps(error.message))
"""

HOOK = """
from motet.core.adapter_source import AdapterSource
from motet.core.hookspecs import hookimpl

class Source(AdapterSource):
    async def resolve(self, ref, token): ...
    async def fetch(self, adapter, token, into): ...
"""

DUPLICATE = """
@hookimpl
def register_adapter_sources(register):
    register("hub", Source())
"""

NEEDS_MORE = """
@hookimpl
def register_adapter_sources(register):
    source = Source()
    source.configure = lambda settings: settings.no_such_setting
    register("needy", source)
"""

A_CLASS = """
@hookimpl
def register_adapter_sources(register):
    register("needy", Source)
"""

NOT_DERIVED = """
@hookimpl
def register_output_formats(register):
    register("yes_no", Source())
"""

MISSPELT = """
@hookimpl
def register_adaptor_sources(register): ...
"""

UNMARKED = """
def register_adapter_sources(register):
    register("needy", Source())
"""

WRAPPER = """
@hookimpl(wrapper=True)
def register_adapter_sources(register):
    yield
"""

SPECNAME = """
@hookimpl(specname="register_adapter_sources")
def add_my_sources(register):
    register("named", Source())
"""


def loaded(*sites: Path) -> object:
    """What `SHOW` prints in a process that finds plugins in `sites`."""
    done = subprocess.run(
        [sys.executable, "-c", SHOW], env=with_plugins(*sites), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_an_installed_plugin_registers_its_objects_under_its_name() -> None:
    owners = loaded(sample_site())
    sample = "sample (motet-sample)"
    assert owners["register_adapter_sources"]["sample"] == sample
    assert owners["register_chat_templates"]["sample"] == sample
    assert owners["register_output_formats"]["yes_no"] == sample
    assert owners["register_adapter_sources"]["hub"] == "motet.plugins.sources.hub"


def test_specname_names_the_hook_of_a_function(tmp_path: Path) -> None:
    owners = loaded(fake_site(tmp_path, "rival", HOOK + SPECNAME))
    assert isinstance(owners, dict)
    sources = owners["register_adapter_sources"]
    assert sources["named"] == "rival (rival)"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (HOOK + DUPLICATE, ["motet.plugins.sources.hub", "'hub'", "rival (rival)", "adapter source"]),
        ("raise KeyError('no such luck')", ["rival (rival)", "failed to import", "no such luck"]),
        ("import no_such_module_anywhere", ["rival (rival)", "no_such_module_anywhere"]),
        (HOOK + MISSPELT, ["rival (rival)", "register_adaptor_sources"]),
        (HOOK + UNMARKED, ["rival (rival)", "register_adapter_sources is not marked", "@hookimpl"]),
        (HOOK + WRAPPER, ["rival (rival)", "cannot be wrapped"]),
        (HOOK + A_CLASS, ["rival (rival)", "the class Source", "register('needy', Source())"]),
        (HOOK + NOT_DERIVED, ["rival (rival)", "'yes_no'", "motet.core.output_format.OutputFormat"]),
        (HOOK + NEEDS_MORE, ["rival (rival)", "'needy'", "no_such_setting"]),
    ],
)
def test_a_bad_plugin_is_a_startup_error_that_names_it(tmp_path: Path, code: str, words: list[str]) -> None:
    message = loaded(fake_site(tmp_path, "rival", code))
    assert isinstance(message, str)
    assert [word for word in words if word not in message] == []
