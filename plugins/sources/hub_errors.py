"""What the hub's failures mean to a caller. None of the messages repeats what the hub or the library said."""

from __future__ import annotations

import httpx2
from huggingface_hub import errors as hub

from motet.core import error_codes
from motet.core.errors import (
    AdapterRefused,
    Forbidden,
    MotetError,
    NotFound,
    SourceOffline,
    Unauthenticated,
    Unavailable,
)
from motet.plugins.sources.hub_transfers import BadAnswer, TooSlow

# What a call of the hub's library may raise for reasons that lie outside this server: RuntimeError comes from
# hf_xet, through which it downloads base models, LookupError, TypeError and AttributeError from malformed metadata.
HUB_FAILURES = (
    *(OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError),
    *(httpx2.HTTPError, hub.EntryNotFoundError),
)

SEND_TOKEN = "send a hub token as api_token in the body or as the header x-adapter-token"


def as_motet_error(error: BaseException, ref: str) -> MotetError:
    """Return the error that a caller of `ref` gets."""
    match error:
        case hub.LocalEntryNotFoundError() if error.__cause__ is not None:
            return as_motet_error(error.__cause__, ref)
        case hub.RemoteEntryNotFoundError():
            return AdapterRefused(f"{ref} is no adapter: it has no adapter_config.json", param="model")
        case hub.RevisionNotFoundError():
            return NotFound(f"{ref}: the hub knows no such revision", param="model")
        case hub.HFValidationError():
            return NotFound(f"{ref} is not a name that the hub can know", param="model")
        case hub.OfflineModeIsEnabled():
            return SourceOffline(
                f"{ref} is not on this server's disk, and the server stays offline (HF_HUB_OFFLINE)", param="model"
            )
        case TooSlow():
            return _unavailable(f"{ref}: the hub sends too slowly")
        case BadAnswer():
            return _unavailable(f"{ref}: the hub's answer is damaged, or larger than it said ({error})")
        case hub.HfHubHTTPError():
            return _from_status(error, ref)
        case httpx2.TimeoutException():
            return _unavailable(f"{ref}: the hub did not answer in time")
        case httpx2.HTTPError() | hub.LocalEntryNotFoundError():
            return _unavailable(f"{ref}: the hub cannot be reached")
        case OSError(strerror=str(reason)):
            return _unavailable(f"{ref}: the download cannot be stored: {reason}")
    return _unavailable(f"{ref}: the hub's answer could not be used ({type(error).__name__})")


def _from_status(error: hub.HfHubHTTPError, ref: str) -> MotetError:
    status = error.response.status_code
    sent = "authorization" in error.response.request.headers
    match error:
        case hub.GatedRepoError() if not sent:
            return Unauthenticated(f"{ref} is gated: {SEND_TOKEN}", param="api_token", code=error_codes.TOKEN_MISSING)
        case hub.GatedRepoError():
            return Forbidden(f"{ref} is gated, and this token has no access to it", param="model")
        case hub.RepositoryNotFoundError() if not sent:
            return NotFound(f"{ref} does not exist, or is private: then {SEND_TOKEN}", param="model")
        case hub.RepositoryNotFoundError():
            return NotFound(f"{ref} does not exist, or this token has no access to it", param="model")
        case hub.DisabledRepoError():
            return Forbidden(f"{ref} has been disabled by the hub", param="model")
    if status == 401 and sent:
        return Unauthenticated("the hub does not accept this token", param="api_token")
    if status == 401:
        return Unauthenticated(f"{ref} wants a token: {SEND_TOKEN}", param="api_token", code=error_codes.TOKEN_MISSING)
    if status == 403:
        return Forbidden(f"the hub forbids access to {ref}", param="model")
    if status == 404:
        return NotFound(f"{ref} does not exist", param="model")
    if status == 429:
        return _unavailable(f"{ref}: the hub refuses further requests for now (429)")
    return _unavailable(f"{ref}: the hub answered with status {status}")


def _unavailable(message: str) -> Unavailable:
    return Unavailable(message, param="model", code=error_codes.SOURCE_UNAVAILABLE)
