"""Maps hub failures to errors for callers. The messages quote neither the hub nor its library."""

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
from motet.plugins.sources.hub_transfers import BadResponse, TooSlow

# What a call of the hub's library may raise because of the hub or the network. RuntimeError comes from hf_xet, which
# downloads base models; LookupError, TypeError and AttributeError come from malformed metadata.
HUB_FAILURES = (
    *(OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError),
    *(httpx2.HTTPError, hub.EntryNotFoundError),
)

SEND_TOKEN = "send a hub token as api_token in the body or as the header x-adapter-token"


def as_motet_error(error: BaseException, ref: str) -> MotetError:
    """Return the error for a caller of `ref`."""
    match error:
        case hub.LocalEntryNotFoundError() if error.__cause__ is not None:
            return as_motet_error(error.__cause__, ref)
        case hub.RemoteEntryNotFoundError():
            return AdapterRefused(f"{ref} is not an adapter: it has no adapter_config.json", param="model")
        case hub.RevisionNotFoundError():
            return NotFound(f"{ref}: the hub has no such revision", param="model")
        case hub.HFValidationError():
            return NotFound(f"{ref} is not a valid hub repository name", param="model")
        case hub.OfflineModeIsEnabled():
            return SourceOffline(
                f"{ref} is not in this server's cache, and the server is offline (HF_HUB_OFFLINE)", param="model"
            )
        case TooSlow():
            return _unavailable(f"{ref}: the hub sends too slowly")
        case BadResponse():
            return _unavailable(f"{ref}: the hub's response is damaged or larger than announced ({error})")
        case hub.HfHubHTTPError():
            return _from_status(error, ref)
        case httpx2.TimeoutException():
            return _unavailable(f"{ref}: the hub did not answer in time")
        case httpx2.HTTPError() | hub.LocalEntryNotFoundError():
            return _unavailable(f"{ref}: the hub cannot be reached")
        case OSError(strerror=str(reason)):
            return _unavailable(f"{ref}: the download cannot be stored: {reason}")
    return _unavailable(f"{ref}: the hub's response could not be used ({type(error).__name__})")


def _from_status(error: hub.HfHubHTTPError, ref: str) -> MotetError:
    status = error.response.status_code
    sent = "authorization" in error.response.request.headers
    match error:
        case hub.GatedRepoError() if not sent:
            return Unauthenticated(f"{ref} is gated: {SEND_TOKEN}", param="api_token", code=error_codes.TOKEN_MISSING)
        case hub.GatedRepoError():
            return Forbidden(f"{ref} is gated, and this token has no access to it", param="model")
        case hub.RepositoryNotFoundError() if not sent:
            return NotFound(f"{ref} does not exist or is private; if it is private, {SEND_TOKEN}", param="model")
        case hub.RepositoryNotFoundError():
            return NotFound(f"{ref} does not exist or this token has no access to it", param="model")
        case hub.DisabledRepoError():
            return Forbidden(f"{ref} is disabled on the hub", param="model")
    if status == 401 and sent:
        return Unauthenticated("the hub rejected this token", param="api_token")
    if status == 401:
        return Unauthenticated(
            f"{ref} requires a token: {SEND_TOKEN}", param="api_token", code=error_codes.TOKEN_MISSING
        )
    if status == 403:
        return Forbidden(f"the hub forbids access to {ref}", param="model")
    if status == 404:
        return NotFound(f"{ref} does not exist", param="model")
    if status == 429:
        return _unavailable(f"{ref}: the hub limits the rate of requests (status 429); try again later")
    return _unavailable(f"{ref}: the hub answered with status {status}")


def _unavailable(message: str) -> Unavailable:
    return Unavailable(message, param="model", code=error_codes.SOURCE_UNAVAILABLE)
