"""Every failure that Motet reports, as one tree.

    MotetError
    ├─ StartupError             a setting, a file or a port that keeps the server from starting (exit code 2)
    ├─ InvalidRequest           400  a field is wrong, or unsupported and would change the result
    │  ├─ ContextExceeded       400  prompt and answer do not fit into the context
    │  └─ JsonInvalid           400  the body is not JSON
    ├─ Unauthenticated          401  a token is missing or wrong
    ├─ Forbidden                403  the token may not use this
    ├─ NotFound                 404  no such model, adapter, route or object
    ├─ SourceOffline            404  the adapter is not on disk, and its source is set to stay offline
    ├─ MethodNotAllowed         405
    ├─ Conflict                 409  the object's state does not allow it; the same again will not help
    ├─ PayloadTooLarge          413
    ├─ UnsupportedMediaType     415
    ├─ AdapterRefused           422  the adapter exists and cannot be served right
    ├─ UpgradeRequired          426  a WebSocket handshake; every route is plain HTTP
    ├─ Overloaded               429
    └─ Unavailable              503  the engine or a source is away; trying again may help

Users' mistakes raise one of these; `assert` is for our own. `ErrorInfo` is the same as plain data, so that
a failure crosses processes and reaches the client as it was raised.
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
    """Root of the tree; `param` names the request field (or setting) at fault, where there is one."""

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
    """The server cannot start as it was asked to."""

    code = error_codes.STARTUP_ERROR


class InvalidRequest(MotetError):
    """A field of the request is wrong, or unsupported and would change the result."""

    status = 400
    code = error_codes.INVALID_VALUE
    type = "invalid_request_error"


class ContextExceeded(InvalidRequest):
    """Prompt and answer do not fit into the model's context."""

    code = error_codes.CONTEXT_LENGTH_EXCEEDED


class JsonInvalid(InvalidRequest):
    """The body is not JSON."""

    code = error_codes.INVALID_JSON


class Unauthenticated(InvalidRequest):
    """A token is missing or wrong."""

    status = 401
    code = error_codes.INVALID_API_KEY


class Forbidden(InvalidRequest):
    """The token is known and may not use this."""

    status = 403
    code = error_codes.PERMISSION_DENIED


class NotFound(InvalidRequest):
    """No such model, adapter, route or object."""

    status = 404
    code = error_codes.MODEL_NOT_FOUND


class SourceOffline(NotFound):
    """The adapter is not on disk, and its source is set to stay offline: trying again does not help."""

    code = error_codes.SOURCE_OFFLINE


class MethodNotAllowed(InvalidRequest):
    """The route exists and does not take this method."""

    status = 405
    code = error_codes.METHOD_NOT_ALLOWED


class Conflict(InvalidRequest):
    """What is asked for does not go with the object's state, or the request was cancelled."""

    status = 409
    code = error_codes.CONFLICT


class PayloadTooLarge(InvalidRequest):
    """The body is over the limit."""

    status = 413
    code = error_codes.PAYLOAD_TOO_LARGE


class UnsupportedMediaType(InvalidRequest):
    """The body is not declared as JSON, or is compressed."""

    status = 415
    code = error_codes.UNSUPPORTED_MEDIA_TYPE


class AdapterRefused(InvalidRequest):
    """The adapter exists and cannot be served right: config field, tensor or size at fault is named."""

    status = 422
    code = error_codes.ADAPTER_REFUSED


class UpgradeRequired(InvalidRequest):
    """A WebSocket handshake; every route is plain HTTP."""

    status = 426
    code = error_codes.UPGRADE_REQUIRED


class Overloaded(MotetError):
    """Too much is waiting; the client should come back later."""

    status = 429
    code = error_codes.OVERLOADED
    type = "rate_limit_error"


class Unavailable(MotetError):
    """The engine or a source is away; trying again may help."""

    status = 503
    code = error_codes.ENGINE_UNAVAILABLE
    type = "service_unavailable_error"


def _tree(root: type[MotetError]) -> list[type[MotetError]]:
    return [root] + [c for sub in root.__subclasses__() for c in _tree(sub)]


def from_info(info: ErrorInfo) -> MotetError:
    """The exception that `info` was made from (by code, else by status, else a plain MotetError)."""
    tree = _tree(MotetError)
    kinds = [k for k in tree if k.code == info.code] + [k for k in tree if k.status == info.status]
    return (kinds or [MotetError])[0](info.message, param=info.param, code=info.code)
