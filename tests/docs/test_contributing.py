"""CONTRIBUTING.md: the files that it names exist, and every explained change names files."""

from __future__ import annotations

import re

import pytest
from docs.pages import ROOT, read, section, table

PAGE = "CONTRIBUTING.md"
CHANGES = re.findall(r"^### (.+)$", read(PAGE), re.MULTILINE)


def test_common_changes_are_explained() -> None:
    required = {"A plugin", "A model architecture", "A setting", "An endpoint", "An error code", "A metric"}
    assert required <= set(CHANGES)


@pytest.mark.parametrize("change", CHANGES)
def test_the_files_to_touch_exist(change: str) -> None:
    files = [row[0].strip("`") for row in table(section(PAGE, change))]
    assert len(files) >= 3
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_every_make_target_is_explained() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", read("Makefile"), re.MULTILINE))
    assert targets - set(re.findall(r"`?make ([a-z-]+)", read(PAGE))) <= {"clean", "help"}
