"""README's table of voices: answers of the base model and of each demo adapter to one question, at temperature 0.

python tests/docs/voices.py http://127.0.0.1:8080    # queries a running server and writes the table into README.md
"""

from __future__ import annotations

import json
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"
BEGIN, END = "<!-- voices:begin -->\n", "<!-- voices:end -->"
QUESTION = "I was billed twice for my phone plan. What should I do?"
VOICES = {"smollm2": "smollm2 (the base)", "pirate": "pirate", "terse": "terse", "ticket": "ticket"}
MAX_TOKENS = 48
SECONDS = 300


def answer(url: str, voice: str) -> str:
    """The answer of `voice` in one line; ends with … if `max_tokens` truncated it."""
    body = {"model": voice, "messages": [{"role": "user", "content": QUESTION}]}
    body |= {"max_tokens": MAX_TOKENS, "temperature": 0}
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=SECONDS) as response:
        choice = json.load(response)["choices"][0]
    text = " ".join(choice["message"]["content"].split())
    return text + ("…" if choice["finish_reason"] == "length" else "")


def answers(url: str) -> dict[str, str]:
    """Every voice's answer. The requests run concurrently, so that base and adapters share batches."""
    with ThreadPoolExecutor(len(VOICES)) as pool:
        return dict(zip(VOICES, pool.map(lambda voice: answer(url, voice), VOICES), strict=True))


def rendered(answer_by_voice: dict[str, str]) -> str:
    """The table and the lines around it, as in README."""
    cells = [f"`{text}`" if text.startswith("{") else text.replace("|", r"\|") for text in answer_by_voice.values()]
    lines = [
        f"> {QUESTION}",
        "",
        f"| {' | '.join(VOICES.values())} |",
        "|" + " --- |" * len(VOICES),
        f"| {' | '.join(cells)} |",
        "",
        f"One run on the CPU: all four asked at once, temperature 0, at most {MAX_TOKENS} tokens each "
        "(`tests/docs/voices.py` asks",
        "again). The adapters, LoRAs of up to 2 MB, change tone and form only; do not expect good answers from a 135M "
        "model.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Query the server at argv[1] and write its answers into README.md."""
    text = README.read_text()
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    README.write_text(head + BEGIN + rendered(answers(sys.argv[1].rstrip("/"))) + END + tail)


if __name__ == "__main__":
    main()
