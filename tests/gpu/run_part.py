"""One part of the check: `python -m gpu.run_part NAME --device cuda`. It prints its section as Markdown."""

from __future__ import annotations

import argparse
import importlib

from gpu.measuring import Bench


def main() -> None:
    """Run the part; whatever fails escapes."""
    parser = argparse.ArgumentParser(prog="gpu.run_part")
    parser.add_argument("part")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="small sizes, also on a GPU")
    arguments = parser.parse_args()
    bench = Bench.on(arguments.device, tiny=arguments.tiny or arguments.device == "cpu")
    importlib.import_module(f"gpu.parts.{arguments.part}").run(bench)


if __name__ == "__main__":
    main()
