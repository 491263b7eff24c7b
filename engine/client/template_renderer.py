"""Chat templates rendered in worker processes, so that a slow or hostile one harms nobody but itself.

Knows limits, queues and processes; jinja itself is in template_worker.py, and where a template comes from is the
plugins' affair.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping

import msgspec

from motet.core.chat_templates import MAX_TEMPLATE_BYTES, ChatTemplate
from motet.core.errors import InvalidRequest
from motet.engine.client.subprocess_pool import SubprocessPool
from motet.engine.client.subprocess_worker import Crashed, TooSlow
from motet.engine.client.template_worker import MAX_OUTPUT_BYTES, Render, Rendered

_WORKER, _TASK = "motet.engine.client.template_worker", "their chat template rendered"
_SECONDS = 1.0
_BAN_SECONDS = 60.0
_MAX_REQUEST_BYTES = 32 * 1024 * 1024
_BASE = "base"
# Renders that may wait for a worker. The base's take a fraction of a millisecond; a foreign one may take its second.
_BASE_ROOM, _FOREIGN_ROOM = 2048, 256
_LARGE_BYTES = 64 * 1024


class TemplateRenderer:
    """Renders chat templates in worker processes, each started when first needed.

    `base` workers are the base model's own and render nothing else, so that one caller's strange messages do not
    hold up everybody; the `foreign` ones share what adapters and plugins bring along. Each kind is shared fairly
    between owners, templates, and large and small requests. Call close() at the end, in the same event loop.
    """

    def __init__(self, base: int = 2, foreign: int = 2) -> None:
        self._base = SubprocessPool(_WORKER, _TASK, _SECONDS, count=base, room=_BASE_ROOM)
        self._foreign = SubprocessPool(_WORKER, _TASK, _SECONDS, count=foreign, room=_FOREIGN_ROOM)
        self._banned: dict[bytes, float] = {}  # digest of owner and input -> until when (monotonic seconds)

    async def close(self) -> None:
        """End the workers; renders that wait are refused."""
        await asyncio.gather(self._base.close(), self._foreign.close())

    async def render(self, template: ChatTemplate, variables: Mapping[str, object], owner: str = "") -> str:
        """The prompt that `template` makes of `variables` (messages, tools, add_generation_prompt, …) for `owner`.

        `tools` and `documents` default to none, as in transformers. Raises InvalidRequest with the template's own
        message if it refuses, or naming the template's origin if it is broken or goes over a limit (1 s, 512 MiB,
        4 MiB of output, 256 KiB of template); Overloaded if too many renders wait.
        """
        frame = _frame(template, variables)
        lanes = self._base if template.origin == _BASE else self._foreign
        size = "large" if len(frame) > _LARGE_BYTES else "small"
        flow = f"{owner} {size} {hashlib.sha256(template.text.encode()).hexdigest()}"
        # A template is slow for some messages only, and another owner's may be fine: these alone are not tried again.
        attempt = hashlib.sha256(owner.encode() + b"\0" + frame).digest()
        self._refuse_banned(template, attempt)
        async with lanes.turn(flow) as lane:
            self._refuse_banned(template, attempt)  # it may have been too slow for the same owner meanwhile
            try:
                answer = msgspec.msgpack.decode(await lane.exchange(frame), type=Rendered)
            except TooSlow:
                self._ban(attempt)
                raise _limit(template, f"takes longer than {_SECONDS:g} s") from None
            except Crashed:
                raise _limit(template, "ended the process that renders it") from None
            if answer.outcome == "memory":
                await lane.renew()
        return _text(template, answer)

    def _ban(self, attempt: bytes) -> None:
        now = time.monotonic()
        self._banned = {key: until for key, until in self._banned.items() if until > now}
        self._banned[attempt] = now + _BAN_SECONDS

    def _refuse_banned(self, template: ChatTemplate, attempt: bytes) -> None:
        left = self._banned.get(attempt, 0.0) - time.monotonic()
        if left > 0:
            raise _limit(template, f"was too slow for these messages a moment ago; try again after {left:.0f} s")


def _limit(template: ChatTemplate, what: str) -> InvalidRequest:
    """The base's template is trusted, so there it is the messages that are too much."""
    param = "messages" if template.origin == _BASE else "model"
    return InvalidRequest(f"the chat template ({template.origin}) {what}", param=param)


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
            raise InvalidRequest(f"the chat template ({template.origin}) is broken: {answer.text}", param="model")
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
        raise InvalidRequest("the messages hold half a surrogate pair, which is no text", param="messages") from None
    except (OverflowError, RecursionError) as error:
        raise InvalidRequest(f"the messages cannot be rendered: {error}", param="messages") from None
    if len(frame) > _MAX_REQUEST_BYTES:
        raise InvalidRequest(f"the messages are over {_MAX_REQUEST_BYTES} bytes", param="messages")
    return frame
