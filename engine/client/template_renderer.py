"""Renders chat templates in worker processes with limits on time, memory and output.

The jinja environment is in template_worker.py; plugins provide the templates.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping

import msgspec

from motet.core.chat_template import MAX_TEMPLATE_BYTES, ChatTemplate
from motet.core.errors import InvalidRequest
from motet.engine.client.subprocess_pool import SubprocessPool
from motet.engine.client.subprocess_worker import Crashed, TooSlow
from motet.engine.client.template_worker import MAX_OUTPUT_BYTES, Render, Rendered

_WORKER, _TASK = "motet.engine.client.template_worker", "their chat template rendered"
_SECONDS = 1.0
_BAN_SECONDS = 60.0
_MAX_REQUEST_BYTES = 32 * 1024 * 1024
_BASE = "base"
# Renders that may wait for a worker. The base's template takes a fraction of a millisecond, others up to a second.
_BASE_ROOM, _OTHER_ROOM = 2048, 256
_LARGE_BYTES = 64 * 1024


class TemplateRenderer:
    """Renders chat templates in worker processes, each started when first needed.

    `base` workers render only the base model's template, so that slow templates of adapters do not delay it; `others`
    render the templates of adapters and plugins. Both kinds are shared fairly between owners, templates, and large and
    small requests. Call close() at the end, in the same event loop.
    """

    def __init__(self, base: int = 2, others: int = 2) -> None:
        self._base = SubprocessPool(_WORKER, _TASK, _SECONDS, count=base, room=_BASE_ROOM)
        self._others = SubprocessPool(_WORKER, _TASK, _SECONDS, count=others, room=_OTHER_ROOM)
        self._banned: dict[bytes, float] = {}  # digest of owner and input -> until when (monotonic seconds)

    async def close(self) -> None:
        """End the workers; renders that wait get Unavailable."""
        await asyncio.gather(self._base.close(), self._others.close())

    async def render(self, template: ChatTemplate, variables: Mapping[str, object], owner: str = "") -> str:
        """Render `template` with `variables` (messages, tools, add_generation_prompt, …) to a prompt for `owner`.

        `tools` and `documents` default to none, as in transformers. Raises InvalidRequest with the message of the
        template's raise_exception, or with the template's origin if it is invalid or exceeds a limit (1 s, 512 MiB,
        4 MiB of output, 256 KiB of template); Overloaded if too many renders wait.
        """
        frame = _frame(template, variables)
        pool = self._base if template.origin == _BASE else self._others
        size = "large" if len(frame) > _LARGE_BYTES else "small"
        flow = f"{owner} {size} {hashlib.sha256(template.text.encode()).hexdigest()}"
        # A template may be slow for some messages only: ban this owner's same input, nothing else.
        attempt = hashlib.sha256(owner.encode() + b"\0" + frame).digest()
        self._refuse_banned(template, attempt)
        async with pool.acquire(flow) as worker:
            self._refuse_banned(template, attempt)  # the same input may have been too slow while this one waited
            try:
                answer = msgspec.msgpack.decode(await worker.exchange(frame), type=Rendered)
            except TooSlow:
                self._ban(attempt)
                raise _limit(template, f"takes longer than {_SECONDS:g} s") from None
            except Crashed:
                raise _limit(template, "crashed the process that renders it") from None
            if answer.outcome == "memory":
                await worker.renew()
        return _text(template, answer)

    def _ban(self, attempt: bytes) -> None:
        now = time.monotonic()
        self._banned = {key: until for key, until in self._banned.items() if until > now}
        self._banned[attempt] = now + _BAN_SECONDS

    def _refuse_banned(self, template: ChatTemplate, attempt: bytes) -> None:
        seconds_left = self._banned.get(attempt, 0.0) - time.monotonic()
        if seconds_left > 0:
            raise _limit(
                template, f"was too slow for these messages a moment ago; try again after {seconds_left:.0f} s"
            )


def _limit(template: ChatTemplate, problem: str) -> InvalidRequest:
    """The error for an exceeded limit. The base's template is trusted, so with it the messages are at fault."""
    param = "messages" if template.origin == _BASE else "model"
    return InvalidRequest(f"the chat template ({template.origin}) {problem}", param=param)


def _text(template: ChatTemplate, answer: Rendered) -> str:
    match answer.outcome:
        case "ok":
            return answer.text
        case "raised":
            raise InvalidRequest(answer.text, param="messages")
        case "failed":
            message = f"the chat template ({template.origin}) failed on these messages: {answer.text}"
            raise InvalidRequest(message, param="messages")
        case "invalid":
            raise InvalidRequest(f"the chat template ({template.origin}) is invalid: {answer.text}", param="model")
        case "memory":
            raise _limit(template, "needs too much memory")
        case "output":
            raise _limit(template, f"makes a prompt of over {MAX_OUTPUT_BYTES} bytes")


def _frame(template: ChatTemplate, variables: Mapping[str, object]) -> bytes:
    try:
        size = len(template.text.encode())
    except UnicodeEncodeError:
        raise InvalidRequest(f"the chat template ({template.origin}) is not valid Unicode", param="model") from None
    if size > MAX_TEMPLATE_BYTES:
        raise _limit(template, f"is over {MAX_TEMPLATE_BYTES} bytes long")
    try:
        frame = msgspec.msgpack.encode(Render(template.text, dict(variables)))
    except UnicodeEncodeError:
        raise InvalidRequest(
            "the messages contain half a surrogate pair, which is not valid Unicode", param="messages"
        ) from None
    except (OverflowError, RecursionError) as error:
        raise InvalidRequest(f"the messages cannot be rendered: {error}", param="messages") from None
    if len(frame) > _MAX_REQUEST_BYTES:
        raise InvalidRequest(f"the messages are over {_MAX_REQUEST_BYTES} bytes", param="messages")
    return frame
