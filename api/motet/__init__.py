"""What `import motet` finds: the version. Motet's own folders are motet.core, motet.plugins, motet.engine, motet.api.

It lies here because the repository's top level has folders only (pyproject.toml maps it).
"""

from __future__ import annotations

from importlib.metadata import version


def __getattr__(name: str) -> str:
    # Read when somebody asks for it: every process of the server imports this package.
    if name == "__version__":
        return version("motet")
    raise AttributeError(f"module 'motet' has no attribute {name!r}")
