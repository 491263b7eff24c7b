"""`sample`: adapters in the directories under MOTET_SAMPLE_ROOT, a chat template for them, and `yes_no` answers.

If a directory has a file `.token`, requests must send that token.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from motet import (
    AdapterListing,
    AdapterRef,
    AdapterSource,
    ChatTemplate,
    ChatTemplateFinder,
    GrammarSpec,
    NotFound,
    OutputFormat,
    Register,
    ResolvedAdapter,
    Settings,
    TemplateContext,
    Unauthenticated,
    hookimpl,
    inside,
)

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}> {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


class SampleAdapters(AdapterSource):
    """`sample:NAME` is the directory NAME under MOTET_SAMPLE_ROOT; its revision is a hash of its files."""

    root = Path()

    def configure(self, settings: Settings) -> None:
        self.root = Path(os.environ.get("MOTET_SAMPLE_ROOT", "/nonexistent"))

    async def resolve(self, ref: AdapterRef, token: str | None) -> ResolvedAdapter:
        directory = self._directory(ref)
        secret = directory / ".token"
        if secret.is_file() and not hmac.compare_digest(secret.read_bytes().strip(), (token or "").encode()):
            raise Unauthenticated(f"{ref} needs a token: send api_token", param="api_token")
        return ResolvedAdapter(ref, await asyncio.to_thread(_digest, directory))

    async def fetch(self, adapter: ResolvedAdapter, token: str | None, into: Path) -> Path:
        await asyncio.to_thread(shutil.copytree, self._directory(adapter.ref), into, dirs_exist_ok=True)
        return into

    async def listing(self) -> Sequence[AdapterListing]:
        names = sorted(path.parent.name for path in self.root.glob("*/adapter_config.json"))
        return [AdapterListing(AdapterRef("sample", name), alias=f"sample-{name}") for name in names]

    def _directory(self, ref: AdapterRef) -> Path:
        directory = inside(self.root, ref.id)
        if directory is None or not (directory / "adapter_config.json").is_file():
            raise NotFound(f"there is no {ref}", param="model")
        return directory


def _digest(directory: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


class SampleTemplate(ChatTemplateFinder):
    """One template for every adapter of the source `sample`."""

    def find(self, context: TemplateContext) -> ChatTemplate | None:
        return ChatTemplate(TEMPLATE, "sample") if context.adapter_source == "sample" else None


class YesNo(OutputFormat):
    """`{"type": "yes_no"}`: the answer is yes or no."""

    def grammar(self, response_format: Mapping[str, object]) -> GrammarSpec:
        return GrammarSpec("regex", "yes|no")


@hookimpl
def register_adapter_sources(register: Register[AdapterSource]) -> None:
    register("sample", SampleAdapters())


@hookimpl
def register_chat_templates(register: Register[ChatTemplateFinder]) -> None:
    register("sample", SampleTemplate())


@hookimpl
def register_output_formats(register: Register[OutputFormat]) -> None:
    register("yes_no", YesNo())
