"""`hub`: base models and adapters from the Hugging Face Hub, or from the mirror that HF_ENDPOINT names.

Tokens: an adapter is requested with the caller's token, never with the operator's login or HF_TOKEN. Otherwise
every caller could use any repository that the operator may read. To allow that, set MOTET_HUB_TOKEN: it is sent for
callers without a token. The base model is requested with the operator's usual login.

Each `resolve` sends one HEAD request for the adapter's config with the caller's token. The response names the commit.
The hub refuses this request, unlike one for metadata, if the caller has no access to a gated repository.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec
from huggingface_hub import HfApi, hf_hub_url

from motet.core import error_codes
from motet.core.adapter_directory_errors import NO_WEIGHTS, instead_of_weights
from motet.core.adapter_source import AdapterRef, AdapterSource, ResolvedAdapter
from motet.core.blocking_calls import BlockingCalls
from motet.core.errors import AdapterRefused, MotetError, NotFound, StartupError, Unauthenticated, Unavailable
from motet.core.hookspecs import Register, hookimpl
from motet.core.model_source import ModelLocation, ModelSource
from motet.core.settings import Settings
from motet.plugins.sources.adapter_roots import CONFIG_FILE, WEIGHTS_FILE
from motet.plugins.sources.directories import ADAPTER_FILES
from motet.plugins.sources.hub_errors import HUB_FAILURES, SEND_TOKEN, as_motet_error
from motet.plugins.sources.hub_transfers import Cancelled, Transfers

NAME = "hub"
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
TOKEN = re.compile(r"[!-~]{1,512}", re.ASCII)
REQUEST_SECONDS = 10.0
MAX_METADATA_BYTES = 16 << 20
MAX_SMALL_FILE_BYTES = 64 << 20  # everything but weights
MODEL_FILES = ["config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"]
MODEL_FILES += ["tokenizer*", "special_tokens_map.json", "chat_template*"]
OTHER_LAYOUTS = ["*/*", "consolidated*"]  # the same weights again, in the formats of other programs

T = TypeVar("T")


class _File(msgspec.Struct):
    """A file in the hub's metadata."""

    rfilename: str
    size: int | None = None


class _Repository(msgspec.Struct):
    """The fields of a repository's metadata that are used."""

    siblings: list[_File] = []


def _api() -> HfApi:
    """The hub client. HF_ENDPOINT is read here: the library reads it only when it is first imported."""
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
    if endpoint and urlsplit(endpoint).scheme not in ("http", "https"):
        raise StartupError(f"HF_ENDPOINT: {endpoint!r} is not an http(s) address", param="HF_ENDPOINT")
    return HfApi(endpoint=endpoint, library_name="motet")


class HubAdapters(AdapterSource):
    """Adapters as hub repositories, `org/name`; a revision is a branch, a tag or a commit."""

    def configure(self, settings: Settings) -> None:
        """Read HF_ENDPOINT and MOTET_HUB_TOKEN. Raises StartupError."""
        self._hub = _api()
        self._default_token = os.environ.get("MOTET_HUB_TOKEN", "").strip()
        # Separate threads: slow downloads must not block authorisation.
        self._resolvers = BlockingCalls("hub-resolve")
        self._fetchers = BlockingCalls("hub-fetch")

    async def resolve(self, ref: AdapterRef, token: str | None) -> ResolvedAdapter:
        """The commit of `ref`. Raises as AdapterSource.resolve, and AdapterRefused if it is not an adapter."""
        if not REPOSITORY.fullmatch(ref.id) or ".." in ref.id or "--" in ref.id:
            raise NotFound(f"{ref.id!r} is not a hub repository name (org/name)", param="model")
        sent = self._token(token)
        commit = await self._in_thread(self._resolvers, ref, lambda: self._commit(ref, sent))
        return ResolvedAdapter(ref, commit, used_credentials=bool(sent) and not token)

    async def fetch(self, adapter: ResolvedAdapter, token: str | None, into: Path) -> Path:
        """Download the adapter's files. Raises as `resolve` does."""
        sent = self._token(token)
        headers = {"user-agent": "motet", **({"authorization": f"Bearer {sent}"} if sent else {})}
        transfers = Transfers(headers, REQUEST_SECONDS)
        try:
            await self._in_thread(self._fetchers, adapter.ref, lambda: self._download(adapter, transfers, into))
        except asyncio.CancelledError:
            transfers.cancelled.set()
            raise
        return into

    def _token(self, token: str | None) -> str | bool:
        """The token for the hub. False sends none; None would send the operator's login."""
        if token and not TOKEN.fullmatch(token):
            raise Unauthenticated("the hub token contains invalid characters", param="api_token")
        return token or self._default_token or False

    async def _in_thread(self, calls: BlockingCalls, ref: AdapterRef, work: Callable[[], T]) -> T:
        def translated() -> T:
            try:
                return work()
            except HUB_FAILURES as error:
                # The library's messages may quote headers, so callers do not get them.
                raise as_motet_error(error, str(ref)) from None

        return await calls.run(ref.id, translated)

    def _commit(self, ref: AdapterRef, token: str | bool) -> str:
        url = hf_hub_url(ref.id, CONFIG_FILE, revision=ref.revision, endpoint=self._hub.endpoint)
        commit = self._hub.get_hf_file_metadata(url=url, token=token, timeout=REQUEST_SECONDS).commit_hash
        if not commit or not re.fullmatch(r"[0-9a-f]{40,64}", commit):
            raise Unavailable(
                f"{ref}: the hub's response has no commit hash", param="model", code=error_codes.SOURCE_UNAVAILABLE
            )
        return commit

    def _download(self, adapter: ResolvedAdapter, transfers: Transfers, into: Path) -> None:
        try:
            for name, size in self._files(adapter, transfers).items():
                url = hf_hub_url(adapter.ref.id, name, revision=adapter.revision, endpoint=self._hub.endpoint)
                transfers.save(url, into / name, size)
        except Cancelled:
            pass
        finally:
            if transfers.cancelled.is_set():  # the caller has already removed `into`
                shutil.rmtree(into, ignore_errors=True)

    def _files(self, adapter: ResolvedAdapter, transfers: Transfers) -> dict[str, int]:
        """The names and sizes of the files to download. Raises AdapterRefused."""
        url = f"{self._hub.endpoint}/api/models/{adapter.ref.id}/revision/{adapter.revision}?blobs=true"
        metadata = transfers.read(url, MAX_METADATA_BYTES)
        sizes = {file.rfilename: file.size for file in msgspec.json.decode(metadata, type=_Repository).siblings}
        selected = {name: size or 0 for name, size in sizes.items() if name in ADAPTER_FILES}
        _check_files(str(adapter.ref), sizes, selected, self.max_adapter_bytes)
        return selected


def _check_files(ref: str, all_names: Iterable[str], sizes: Mapping[str, int], limit: int) -> None:
    """Raise AdapterRefused unless `sizes` (bytes per file) is a complete adapter with weights of at most `limit`."""
    if not sizes.get(WEIGHTS_FILE):
        names = sorted(name for name in all_names if "/" not in name)
        raise AdapterRefused(f"{ref} {instead_of_weights(names) or NO_WEIGHTS}", param="model")
    for name, size in sizes.items():
        maximum = limit if name == WEIGHTS_FILE else MAX_SMALL_FILE_BYTES
        if size > maximum:
            raise AdapterRefused(f"{name} of {ref} has {size} bytes; the maximum is {maximum}", param="model")


class HubModels(ModelSource):
    """Base models as hub repositories: `org/name`, `org/name@revision`, with or without the prefix `hub:`."""

    def claims(self, ref: str) -> bool:
        """Whether `ref` has the form of a hub repository."""
        return REPOSITORY.fullmatch(ref.removeprefix("hub:").partition("@")[0]) is not None

    def locate(self, ref: str) -> ModelLocation:
        """The repository's snapshot in the hub library's cache; downloads what is missing. Raises StartupError."""
        repository, _, revision = ref.removeprefix("hub:").partition("@")
        try:
            directory = Path(
                _api().snapshot_download(
                    repository,
                    revision=revision or None,
                    allow_patterns=MODEL_FILES,
                    ignore_patterns=OTHER_LAYOUTS,
                )
            )
        except HUB_FAILURES as error:
            raise _startup_error(as_motet_error(error, ref), ref) from None
        if not (directory / "config.json").is_file() or not any(directory.glob("*.safetensors")):
            raise StartupError(
                f"--model {ref}: the repository lacks config.json or *.safetensors (no other format is supported)",
                param="model",
            )
        name = ref.removeprefix("hub:")
        aliases = tuple(dict.fromkeys((repository, f"hub:{repository}", name, f"hub:{name}")))
        return ModelLocation(directory, "transformers", repository, aliases)


def _startup_error(failure: MotetError, ref: str) -> StartupError:
    """The operator's version of an error for callers: the operator's token does not come from a request."""
    reason = failure.message.removeprefix(ref).removeprefix(":").strip()
    login = "run `hf auth login` or set HF_TOKEN"
    if SEND_TOKEN in reason:
        reason = reason.replace(SEND_TOKEN, login)
    elif failure.status != Unavailable.status:
        reason = f"{reason} (for a private or gated model, {login})"
    return StartupError(f"--model {ref}: {reason}", param="model")


@hookimpl
def register_adapter_sources(register: Register[AdapterSource]) -> None:
    """Add `hub`."""
    register(NAME, HubAdapters())


@hookimpl
def register_model_sources(register: Register[ModelSource]) -> None:
    """Add `hub`."""
    register(NAME, HubModels())
