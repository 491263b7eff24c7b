"""What a caller sent, as an error message may repeat it: enough to know it again, whatever its length."""

from __future__ import annotations

MAX_ECHO = 200


def shortened(text: str) -> str:
    """`text`, without its middle if it has more than MAX_ECHO characters."""
    return text if len(text) <= MAX_ECHO else f"{text[: MAX_ECHO - 60]} … {text[-57:]}"
