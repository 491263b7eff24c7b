"""Translates Anthropic's messages, whose contents are lists of blocks, into chat messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from motet.api.anthropic.requests import (
    Block,
    InputMessage,
    RedactedThinkingBlock,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from motet.api.schema.chat_messages import MAX_CONTENT_PARTS, FunctionCall, Message, ToolCall
from motet.api.schema.parsing import convert
from motet.api.schema.unknown_fields import unknown_names
from motet.core import error_codes
from motet.core.errors import InvalidRequest
from motet.core.excerpt import shortened

T = TypeVar("T", bound=msgspec.Struct)

_BLOCKS_BY_TYPE: Mapping[str, type[Block]] = {
    "text": TextBlock,
    "tool_use": ToolUseBlock,
    "tool_result": ToolResultBlock,
    "thinking": ThinkingBlock,
    "redacted_thinking": RedactedThinkingBlock,
}

# Blocks that Anthropic's own tools add to a conversation; those tools are not available here.
_SERVER_BLOCKS = frozenset(
    {
        "server_tool_use",
        "mcp_tool_use",
        "mcp_tool_result",
        "web_search_tool_result",
        "web_fetch_tool_result",
        "code_execution_tool_result",
        "bash_code_execution_tool_result",
        "text_editor_code_execution_tool_result",
        "tool_search_tool_result",
    }
)


class ContentReader:
    """Reads the blocks of a request's messages; `ignored` collects the paths of what it ignores."""

    def __init__(self) -> None:
        self.ignored: list[str] = []
        self._blocks = 0

    def messages(self, system: str | Sequence[TextBlock] | None, inputs: Sequence[InputMessage]) -> list[Message]:
        """The conversation as chat messages. Raises InvalidRequest naming the invalid block."""
        messages = [Message("system", text)] if (text := _system(system)) else []
        for index, message in enumerate(inputs):
            messages += self._message(message, f"messages[{index}].content")
        return list(_combined(messages))

    def _message(self, message: InputMessage, parent: str) -> list[Message]:
        if isinstance(message.content, str):
            return [Message(message.role, message.content)]
        blocks = [*self._read(message.content, parent)]
        if message.role == "assistant":
            return [_assistant(blocks)]
        results = [self._result(block, path) for block, path in blocks if isinstance(block, ToolResultBlock)]
        texts = [block.text for block, _ in blocks if isinstance(block, TextBlock)]
        # A result follows the call that it answers, so results come before text.
        return [*results, *([Message(message.role, "\n".join(texts))] if texts or not results else [])]

    def _read(self, content: Iterable[Mapping[str, Any]], parent: str) -> Iterator[tuple[Block, str]]:
        for index, entry in enumerate(content):
            self._count()
            path = f"{parent}[{index}]"
            kind = entry.get("type")
            if isinstance(kind, str) and kind in _SERVER_BLOCKS:
                self.ignored.append(f"{path}.{kind}")
                continue
            block_type = _BLOCKS_BY_TYPE.get(kind) if isinstance(kind, str) else None
            if block_type is None:
                raise _unsupported(kind, path)
            yield self._convert(entry, block_type, path), path

    def _convert(self, entry: Mapping[str, Any], kind: type[T], path: str) -> T:
        self.ignored += [f"{path}.{name}" for name in unknown_names(entry, kind)]
        try:
            return convert(entry, kind)
        except InvalidRequest as error:
            raise InvalidRequest(
                f"{path}.{error.message}", param=f"{path}.{error.param}" if error.param else path, code=error.code
            ) from None

    def _count(self) -> None:
        self._blocks += 1
        if self._blocks > MAX_CONTENT_PARTS:
            raise InvalidRequest(f"the messages have more than {MAX_CONTENT_PARTS} content blocks", param="messages")

    def _result(self, block: ToolResultBlock, path: str) -> Message:
        texts = [block.content] if isinstance(block.content, str) else []
        parts = block.content if isinstance(block.content, list) else []
        for part, inner_path in self._read(parts, f"{path}.content"):
            if not isinstance(part, TextBlock):
                raise _unsupported(part.__struct_config__.tag, inner_path)
            texts.append(part.text)
        text = "\n".join(texts)
        return Message("tool", f"Error: {text}" if block.is_error else text, tool_call_id=block.tool_use_id)


def _unsupported(kind: object, path: str) -> InvalidRequest:
    if kind is None:
        return InvalidRequest(
            f"{path}.type is missing", param=f"{path}.type", code=error_codes.MISSING_REQUIRED_PARAMETER
        )
    return InvalidRequest(
        f"blocks of type {shortened(str(kind))!r} are not supported here; send text",
        param=f"{path}.type",
        code=error_codes.UNSUPPORTED_VALUE,
    )


def _system(system: str | Sequence[TextBlock] | None) -> str:
    if system is None or isinstance(system, str):
        return system or ""
    return "\n".join(block.text for block in system)


def _assistant(blocks: Sequence[tuple[Block, str]]) -> Message:
    for block, path in blocks:
        if isinstance(block, ToolResultBlock):
            raise InvalidRequest(
                "tool_result blocks belong in user messages", param=f"{path}.type", code=error_codes.UNSUPPORTED_VALUE
            )
    text = "\n".join(block.text for block, _ in blocks if isinstance(block, TextBlock))
    calls = [
        ToolCall(block.id, FunctionCall(block.name, msgspec.json.encode(block.input).decode()))
        for block, _ in blocks
        if isinstance(block, ToolUseBlock)
    ]
    return Message("assistant", text, tool_calls=calls or None)


def _combined(messages: Iterable[Message]) -> Iterator[Message]:
    """The messages; consecutive user messages become one, as do consecutive assistant messages."""
    latest: Message | None = None
    for message in messages:
        if latest is not None and latest.role == message.role and message.role in ("user", "assistant"):
            text = "\n".join(filter(None, (latest.text(), message.text())))
            calls = [*(latest.tool_calls or ()), *(message.tool_calls or ())]
            latest = Message(message.role, text, tool_calls=calls or None)
            continue
        if latest is not None:
            yield latest
        latest = message
    if latest is not None:
        yield latest
