"""Renders chat templates in a worker process: they are untrusted code, so they run in jinja's sandbox within limits.

Requests and answers are msgpack structs. The parent (template_renderer.py) limits the time by killing the process; this
module limits memory and output. Templates get the same variables and functions as in transformers 5.
"""

from __future__ import annotations

import json
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal

import jinja2
import msgspec
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from motet.engine.client.subprocess_main import serve

MAX_OUTPUT_BYTES = 4 * 1024 * 1024
MAX_DEPTH = 64
_MEMORY_BYTES = 512 * 1024 * 1024
_CPU_SECONDS = 3  # the parent kills a render after one second; this holds if the parent is gone
_MAX_ERROR_CHARACTERS = 2000
_REASONING = ("reasoning_content", "thinking", "reasoning")


class Render(msgspec.Struct):
    """A request to render a template."""

    template: str
    variables: dict[str, Any]


class Rendered(msgspec.Struct):
    """The answer: the prompt, or what went wrong.

    `raised`: the template called raise_exception; `failed`: an error while it ran; `invalid`: its syntax is wrong;
    `memory` and `output`: it exceeded that limit.
    """

    text: str
    outcome: Literal["ok", "raised", "failed", "invalid", "memory", "output"] = "ok"


class _Raised(jinja2.TemplateError):
    """The template called raise_exception."""


class _OutputTooLarge(Exception):
    pass


class _Generation(Extension):
    """{% generation %} … {% endgeneration %} marks what training computes the loss on; in a prompt it has no effect."""

    tags = {"generation"}  # noqa: RUF012 (jinja declares it as a plain set)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Namespace(Namespace):
    """jinja's namespace() without names that begin with an underscore, which reach into Python's objects."""

    def __init__(*args: Any, **attributes: Any) -> None:
        self, *rest = args
        values = dict(*rest, **attributes)
        for name in values:
            _refuse_underscore(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


def _refuse_underscore(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot have the attribute {name!r}")


class _Dict:
    """dict() for templates: a callable instead of the type, so that templates cannot reach the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _raise_exception(message: object) -> None:
    raise _Raised(str(message))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Indentation writes each element's depth in spaces: the output of a deep value is its size times its depth.
    if indent is not None and _is_deeper(value, MAX_DEPTH):
        raise _Raised(f"a value that is nested more than {MAX_DEPTH} levels deep cannot be written as JSON")
    # jinja's own filter escapes for HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects in `value` are nested more than `levels` deep."""
    level = [value]
    for _ in range(levels + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list | tuple)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment


_ENVIRONMENT = _environment()


@lru_cache(maxsize=32)
def _compiled(template: str) -> jinja2.Template:
    return _ENVIRONMENT.from_string(template)


def _as_in_transformers(message: object) -> object:
    """A message without its null fields, and with its reasoning under both names that templates use."""
    if not isinstance(message, dict):
        return message
    message = {name: value for name, value in message.items() if value is not None}
    reasoning = next((message[name] for name in _REASONING if name in message), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _text(request: Render) -> str:
    template = _compiled(request.template)
    variables = {"tools": None, "documents": None, "add_generation_prompt": False, **request.variables}
    messages = variables.get("messages")
    if isinstance(messages, list):
        variables["messages"] = [_as_in_transformers(message) for message in messages]
    parts: list[str] = []
    size = 0
    for part in template.generate(variables):
        size += len(part.encode())
        if size > MAX_OUTPUT_BYTES:
            raise _OutputTooLarge
        parts.append(part)
    return "".join(parts)


def render(request: Render) -> Rendered:
    """Render one template; every error becomes an answer."""
    try:
        return Rendered(_text(request))
    except _Raised as error:
        return _error_answer(error, "raised")
    except _OutputTooLarge:
        return Rendered("", "output")
    except MemoryError:
        return Rendered("", "memory")
    except jinja2.TemplateSyntaxError as error:
        return _error_answer(error, "invalid")
    except Exception as error:  # untrusted code can raise anything
        return _error_answer(error, "failed")


def _error_answer(error: Exception, outcome: Literal["raised", "failed", "invalid"]) -> Rendered:
    text = str(error)[:_MAX_ERROR_CHARACTERS] or type(error).__name__
    return Rendered(text.encode(errors="replace").decode(), outcome)


def main() -> None:
    """Answer requests from stdin until it ends."""
    decoder, encoder = msgspec.msgpack.Decoder(Render), msgspec.msgpack.Encoder()

    def answer(request: bytes) -> bytes:
        try:
            return encoder.encode(render(decoder.decode(request)))
        except MemoryError:
            return encoder.encode(Rendered("", "memory"))

    serve(answer, _MEMORY_BYTES, _CPU_SECONDS)


if __name__ == "__main__":
    main()
