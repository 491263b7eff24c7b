"""Picks the error shape of a failed request: OpenAI's, Anthropic's, Ollama's or LoRAX's, as its client expects."""

from __future__ import annotations

from collections.abc import Callable

from quart import Quart, Response, request

from motet.api.anthropic.errors import anthropic_error_response, is_anthropic
from motet.api.http.errors import error_response
from motet.api.lorax.errors import PREFIX, lorax_error_response
from motet.api.ollama.errors import is_ollama, ollama_error_response
from motet.core.errors import ErrorInfo


def response_by_client(app: Quart) -> Callable[[ErrorInfo], Response]:
    """The function that makes the response for a failure of the current request of `app`."""
    lorax_paths = {rule.rule for rule in app.url_map.iter_rules() if rule.endpoint.startswith(PREFIX)}

    def respond(info: ErrorInfo) -> Response:
        if request.path in lorax_paths:
            return lorax_error_response(info)
        if is_ollama(request):
            return ollama_error_response(info)
        return anthropic_error_response(info) if is_anthropic(request) else error_response(info)

    return respond
