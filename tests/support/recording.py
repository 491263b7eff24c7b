"""Records work on the CPU: a replay runs the same Python code again, over the tensors that it was recorded with.

So its results are wrong if a step depends on anything but the content of these tensors.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from motet.engine.decode_graphs import Recording


def record(work: Callable[[], Tensor | None]) -> Recording:
    """A recording of `work`."""
    output = work()
    assert output is not None

    def replay() -> None:
        again = work()
        assert again is not None
        output.copy_(again)

    return Recording(replay, output)
