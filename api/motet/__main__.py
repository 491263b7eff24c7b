"""`python -m motet`, the same as the `motet` command."""

from __future__ import annotations

from motet.api.server.cli import main

if __name__ == "__main__":
    main()
