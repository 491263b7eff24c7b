"""Damaged files of compiled kernels: removed and compiled again, whichever file it is and however it was damaged."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import pytest

from motet.engine.kernels.kernel_cache import check_cached_kernels


def _zeros_in_the_middle(content: bytes) -> bytes:
    third = len(content) // 3
    return content[:third] + bytes(third) + content[2 * third :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "zeros": _zeros_in_the_middle,
    "zeros at the end": lambda content: content[:-20] + bytes(20),
    "another format": lambda content: b"not a pickle",
}


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Imports a module with one cached kernel anew, as the next process would."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "kernels"))
    source = tmp_path / "kernel.py"
    source.write_text("from numba import njit\n\n\n@njit(cache=True)\ndef double(x):\n    return 2 * x\n")

    def load() -> Any:
        spec = importlib.util.spec_from_file_location("kernel", source)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        check_cached_kernels(module.double)
        return module.double

    return load


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", ["nbi", "nbc"])
def test_a_damaged_file_is_made_again(fresh: Callable[[], Any], tmp_path: Path, kind: str, damage: str) -> None:
    assert fresh()(4) == 8
    whole = fresh()
    assert whole(4) == 8
    assert sum(whole.stats.cache_hits.values()) == 1
    (file,) = (tmp_path / "kernels").rglob(f"*.{kind}")
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    healed = fresh()
    assert healed(4) == 8
    assert sum(healed.stats.cache_hits.values()) == 0
    again = fresh()
    assert again(4) == 8
    assert sum(again.stats.cache_hits.values()) == 1, "the repaired files are used"
