"""The exceptions for every failure that Motet reports, as one class tree.

    MotetError
    ├─ StartupError             a setting, a file or a port prevents the server from starting (exit code 2)
    ├─ InvalidRequest           400  a field is wrong, or unsupported and would change the result
    │  ├─ ContextExceeded       400  the prompt and max_tokens exceed the context length
    │  └─ JsonInvalid           400  the request body is not JSON
    ├─ Unauthenticated          401  an API key or token is missing or invalid
    ├─ Forbidden                403  the API key or token does not allow this
    ├─ NotFound                 404  the model, adapter, route or object does not exist
    ├─ SourceOffline            404  the adapter is not on disk, and its source is in offline mode
    ├─ MethodNotAllowed         405  the route exists, but does not support this method
    ├─ Conflict                 409  the object's state does not allow the request; a retry does not help
    ├─ PayloadTooLarge          413  the request body exceeds a size limit
    ├─ UnsupportedMediaType     415  the request body is not declared as JSON, or is compressed
    ├─ AdapterRefused           422  the adapter exists, but cannot be served correctly
    ├─ UpgradeRequired          426  a WebSocket handshake; every route is plain HTTP
    ├─ Overloaded               429  too many requests are waiting; retry later
    └─ Unavailable              503  the engine or a source is unavailable; a retry may help

Raise one of these for a user's mistake, and use `assert` for bugs. `ErrorInfo` holds the same information as plain
data: processes exchange it, so that the client receives the error as it was raised.
"""

from __future__ import annotations

import msgspec

from motet.core import error_codes


class ErrorInfo(msgspec.Struct, frozen=True):
    """A failure as data: OpenAI's error object plus its HTTP status."""

    message: str
    type: str
    code: str
    status: int
    param: str | None = None


class MotetError(Exception):
    """The base class; `param` names the request field or setting that is wrong, if there is one."""

    status = 500
    code = error_codes.INTERNAL_ERROR
    type = "server_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code

    def info(self) -> ErrorInfo:
        """This failure as data."""
        return ErrorInfo(self.message, self.type, self.code, self.status, self.param)


class StartupError(MotetError):
    """The server cannot start as configured."""

    code = error_codes.STARTUP_ERROR


class InvalidRequest(MotetError):
    """A field of the request is wrong, or unsupported and would change the result."""

    status = 400
    code = error_codes.INVALID_VALUE
    type = "invalid_request_error"


class ContextExceeded(InvalidRequest):
    """The prompt and max_tokens exceed the model's context length."""

    code = error_codes.CONTEXT_LENGTH_EXCEEDED


class JsonInvalid(InvalidRequest):
    """The request body is not JSON."""

    code = error_codes.INVALID_JSON


class Unauthenticated(InvalidRequest):
    """An API key or token is missing or invalid."""

    status = 401
    code = error_codes.INVALID_API_KEY


class Forbidden(InvalidRequest):
    """The API key or token is valid, but does not allow this."""

    status = 403
    code = error_codes.PERMISSION_DENIED


class NotFound(InvalidRequest):
    """The model, adapter, route or object does not exist."""

    status = 404
    code = error_codes.MODEL_NOT_FOUND


class SourceOffline(NotFound):
    """The adapter is not on disk, and its source is in offline mode: a retry does not help."""

    code = error_codes.SOURCE_OFFLINE


class MethodNotAllowed(InvalidRequest):
    """The route exists, but does not support this method."""

    status = 405
    code = error_codes.METHOD_NOT_ALLOWED


class Conflict(InvalidRequest):
    """The object's state does not allow the request, or the request was cancelled."""

    status = 409
    code = error_codes.CONFLICT


class PayloadTooLarge(InvalidRequest):
    """The request body exceeds a size limit."""

    status = 413
    code = error_codes.PAYLOAD_TOO_LARGE


class UnsupportedMediaType(InvalidRequest):
    """The request body is not declared as JSON, or is compressed."""

    status = 415
    code = error_codes.UNSUPPORTED_MEDIA_TYPE


class AdapterRefused(InvalidRequest):
    """The adapter exists, but cannot be served correctly; the message names the config field, tensor or size."""

    status = 422
    code = error_codes.ADAPTER_REFUSED


class UpgradeRequired(InvalidRequest):
    """A WebSocket handshake; every route is plain HTTP."""

    status = 426
    code = error_codes.UPGRADE_REQUIRED


class Overloaded(MotetError):
    """Too many requests are waiting; the client should retry later."""

    status = 429
    code = error_codes.OVERLOADED
    type = "rate_limit_error"


class Unavailable(MotetError):
    """The engine or a source is unavailable; a retry may help."""

    status = 503
    code = error_codes.ENGINE_UNAVAILABLE
    type = "service_unavailable_error"


def _subtree(root: type[MotetError]) -> list[type[MotetError]]:
    return [root] + [c for sub in root.__subclasses__() for c in _subtree(sub)]


def from_info(info: ErrorInfo) -> MotetError:
    """The exception for `info`: the class with its code, else with its status, else MotetError."""
    classes = _subtree(MotetError)
    matches = [c for c in classes if c.code == info.code] + [c for c in classes if c.status == info.status]
    return (matches or [MotetError])[0](info.message, param=info.param, code=info.code)
