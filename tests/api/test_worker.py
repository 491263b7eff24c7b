"""How an API worker identifies the listening socket that it inherits."""

from __future__ import annotations

import socket

import pytest

from motet.api.worker import _is_local_only


@pytest.mark.parametrize(
    ("family", "host", "local"),
    [
        (socket.AF_INET, "127.0.0.1", True),
        (socket.AF_INET, "127.0.0.2", True),
        (socket.AF_INET, "0.0.0.0", False),
        (socket.AF_INET6, "::1", True),
        (socket.AF_INET6, "::", False),
    ],
)
def test_whether_others_can_reach_us(family: socket.AddressFamily, host: str, local: bool) -> None:
    with socket.socket(family) as listener:
        try:
            listener.bind((host, 0))
        except OSError:
            pytest.skip(f"this machine has no {host}")
        assert _is_local_only(listener.fileno()) is local
        assert listener.getsockname()  # it is still open
