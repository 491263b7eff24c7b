"""Answers routes of other servers that Motet does not offer: a 404 that names the alternative."""

from __future__ import annotations

from quart import Blueprint, Response

from motet.api.http.route_hints import NOT_OFFERED, no_route_message, similar_route
from motet.api.schema.operations import Operation
from motet.api.services import Services
from motet.core import error_codes
from motet.core.errors import NotFound

OPERATIONS: tuple[Operation, ...] = ()

NOT_OFFERED_RESOURCES = {
    "moderations": "moderation",
    "audio": "audio",
    "images": "images",
    "videos": "videos",
    "realtime": "realtime sessions",
    "fine_tuning": "fine-tuning",
    "assistants": "assistants",
    "threads": "threads",
    "vector_stores": "vector stores",
    "uploads": "uploads in parts; POST /v1/files takes whole files",
    "evals": "evals",
    "containers": "containers",
    "conversations": "conversations; responses continue one another by previous_response_id",
}
METHODS = ["GET", "POST", "DELETE"]

NOT_OFFERED_METHODS = {
    ("/v1/chat/completions", "GET"): "stored chat completions; send POST to get an answer",
    ("/v1/chat/completions/<path:rest>", "GET"): "stored chat completions; responses are stored",
    ("/v1/chat/completions/<path:rest>", "POST"): "stored chat completions; responses are stored",
    ("/v1/chat/completions/<path:rest>", "DELETE"): "stored chat completions; responses are stored",
    ("/v1/responses/compact", "POST"): "compaction; set truncation to auto to drop old messages",
    ("/v1/chat/completions/render", "POST"): "rendered prompts; POST /tokenize with messages gives the prompt's tokens",
    ("/v1/completions/render", "POST"): "rendered prompts; POST /tokenize gives the prompt's tokens",
    ("/v1/messages/batches", "GET"): "message batches; POST /v1/batches runs files of chat completions",
    ("/v1/messages/batches", "POST"): "message batches; POST /v1/batches runs files of chat completions",
    ("/v1/complete", "POST"): "Anthropic's text completions; use POST /v1/messages or POST /v1/completions",
}
"""Routes below existing ones."""

_RERANKING = "reranking, which needs another kind of model; compare vectors of POST /v1/embeddings"
_SCORING = "scores of pairs of texts; compare vectors of POST /v1/embeddings"
_LOADING = "loading of adapters, which is not needed: name the adapter as model and it is loaded when first used"
_UNLOADING = "unloading of adapters, which is not needed: unused adapters make room for others"
_CLASSES = "classification, which needs another kind of model"
_POOLING = "raw hidden states; POST /v1/embeddings gives pooled vectors"
_PULLING = "changes of models through Ollama's API; adapters are found by their names, and GET /api/tags lists them"

OTHER_SERVERS = {
    **dict.fromkeys(("/rerank", "/v1/rerank", "/v2/rerank"), _RERANKING),
    **dict.fromkeys(("/score", "/v1/score"), _SCORING),
    **dict.fromkeys(("/v1/classify", "/v1/classifications"), _CLASSES),
    **dict.fromkeys(("/pooling", "/v1/pooling"), _POOLING),
    **dict.fromkeys(("/v1/load_lora_adapter", "/load_lora_adapter"), _LOADING),
    **dict.fromkeys(("/v1/unload_lora_adapter", "/unload_lora_adapter"), _UNLOADING),
    "/lora-adapters": "scales of loaded adapters; name the adapter as model, or send merged_adapters with weights",
    "/props": "llama.cpp's properties; GET /info has the model and its limits, GET /tokenizer_info the chat template",
    "/slots": "llama.cpp's slots; GET /health counts what runs and waits",
    "/completion": "llama.cpp's completions; use POST /v1/completions",
    "/infill": "llama.cpp's infill; use suffix of POST /v1/completions",
    "/apply-template": "rendered prompts; POST /tokenize with messages gives the prompt's tokens",
    "/get_model_info": "SGLang's model facts; use GET /info",
    "/get_server_info": "SGLang's server facts; use GET /info",
    "/api/embed": "Ollama's embeddings; use POST /v1/embeddings",
    "/api/embeddings": "Ollama's embeddings; use POST /v1/embeddings",
    "/api/ps": "Ollama's list of loaded models; GET /health counts the adapters on the device",
    **dict.fromkeys(("/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete"), _PULLING),
}
"""Routes of other servers, whose clients may be configured to use this one."""


def routes(services: Services) -> Blueprint:
    """The routes; they do not use `services`."""
    blueprint = Blueprint(NOT_OFFERED, __name__)

    def refuse(path: str, methods: list[str], what: str) -> None:
        async def refusal(rest: str = "") -> Response:
            if rest and (path, methods[0]) in NOT_OFFERED_METHODS and similar_route() is not None:
                raise NotFound(no_route_message(), code=error_codes.NOT_FOUND)
            raise NotFound(f"this server does not offer {what}", code=error_codes.NOT_OFFERED)

        blueprint.add_url_rule(path, f"{path} {methods}".replace(".", "_"), refusal, methods=methods)

    for path, what in OTHER_SERVERS.items():
        refuse(path, METHODS, what)
    for kind, what in NOT_OFFERED_RESOURCES.items():
        for path in (f"/v1/{kind}", f"/v1/{kind}/<path:rest>"):
            refuse(path, METHODS, what)
    for (path, method), what in NOT_OFFERED_METHODS.items():
        refuse(path, [method], what)
    return blueprint
