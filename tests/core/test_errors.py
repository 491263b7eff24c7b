"""The error tree: statuses and codes are OpenAI's, and a failure survives its trip between processes."""

from __future__ import annotations

import msgspec
import pytest

from motet.core import errors
from motet.core.errors import ErrorInfo, MotetError, from_info


def tree(root: type[MotetError] = MotetError) -> list[type[MotetError]]:
    """`root` and all classes below it."""
    return [
        root,
        *(kind for child in root.__subclasses__() for kind in tree(child) if kind.__module__ == root.__module__),
    ]


KINDS = tree()


def test_the_docstring_lists_all_classes() -> None:
    listed = [line.split("─ ")[-1].split()[0] for line in (errors.__doc__ or "").splitlines() if "─ " in line]
    assert sorted(listed) == sorted(kind.__name__ for kind in KINDS[1:])
    for line in (errors.__doc__ or "").splitlines():
        name, status = [*line.split("─ ")[-1].split(), "", ""][:2]
        if status.isdigit():
            assert getattr(errors, name).status == int(status)


def test_codes_are_unique() -> None:
    assert len({kind.code for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_through_the_wire(kind: type[MotetError]) -> None:
    sent = kind("what is wrong", param="temperature").info()
    received = msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=ErrorInfo)
    error = from_info(received)
    assert type(error) is kind
    assert error.info() == sent
    assert str(error) == "what is wrong"


@pytest.mark.parametrize("kind", KINDS)
def test_own_code_keeps_status_and_type(kind: type[MotetError]) -> None:
    sent = kind("no", code="quite_its_own").info()
    error = from_info(sent)
    assert error.code == "quite_its_own"
    assert error.status == kind.status
    assert type(kind("other")).code == kind.code, "an instance's code does not leak into the class"


def test_unknown_status_is_a_server_error() -> None:
    error = from_info(ErrorInfo("odd", "odd_error", "odd", 599))
    assert type(error) is MotetError
    assert (error.message, error.code) == ("odd", "odd")


@pytest.mark.parametrize("kind", KINDS)
def test_type_follows_the_status(kind: type[MotetError]) -> None:
    client_fault = 400 <= kind.status < 500 and kind.status != 429
    assert (kind.type == "invalid_request_error") == client_fault
