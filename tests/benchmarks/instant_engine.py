"""A fake engine that answers without delay, so that a benchmark measures the HTTP layer only.

`python -m tests.benchmarks.instant_engine RUN_DIRECTORY MODEL_DIRECTORY` uses the real engine's messages at the
addresses below RUN_DIRECTORY. In each round it sends one token of every running sequence in one message, as the real
engine does after a step.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec
import zmq

from motet.core.messages import (
    AbortRequest,
    AddRequest,
    EngineStats,
    GetStats,
    Hello,
    Ready,
    ToEngine,
    TokenEvent,
    TokenEvents,
)
from motet.core.model_source import ModelInfo
from motet.engine.client.tokenizer import ModelTokenizer

CONTEXT = 8192
TEXT = " the sea is wide and the wind is fair, and so we sail on for another day"


@dataclass
class Answer:
    """A sequence: its client, and the number of remaining tokens."""

    client: bytes
    left: int
    sent: int = 0


class InstantEngine:
    """Answers the messages of API processes."""

    def __init__(self, run_directory: str, model_directory: str) -> None:
        context = zmq.Context()
        self._socket = context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.bind(f"ipc://{run_directory}/engine")
        self._state = context.socket(zmq.PUB)
        self._state.bind(f"ipc://{run_directory}/state")
        text = ModelTokenizer(Path(model_directory))
        self._model = ModelInfo("instant", "Instant", model_directory, text.vocab_size, CONTEXT, "float32", 1, ())
        self._tokens = text.encode(TEXT, add_special_tokens=False)
        self._decode = msgspec.msgpack.Decoder(ToEngine).decode
        self._encode = msgspec.msgpack.Encoder().encode
        self._answers: dict[str, Answer] = {}
        self._rounds = 0

    def run(self) -> None:
        """Serve until the process ends."""
        while True:
            while self._socket.poll(0 if self._answers else 500):
                client, body = self._socket.recv_multipart()
                self._take(client, self._decode(body))
            self._round()

    def _take(self, client: bytes, message: ToEngine) -> None:
        match message:
            case Hello():
                self._send(client, Ready("instant", self._model))
            case AddRequest():
                self._answers[message.id] = Answer(client, message.params.max_tokens)
            case AbortRequest():
                self._answers.pop(message.id, None)
            case GetStats():
                self._send(client, EngineStats(len(self._answers), 0, 1, 1, 0, 0, self._rounds, 0))
            case _:
                pass

    def _round(self) -> None:
        events: dict[bytes, list[TokenEvent]] = {}
        for id, answer in list(self._answers.items()):
            token = self._tokens[answer.sent % len(self._tokens)]
            answer.sent += 1
            answer.left -= 1
            finish = None if answer.left > 0 else "length"
            events.setdefault(answer.client, []).append(TokenEvent(id, token, finish=finish))
            if finish:
                del self._answers[id]
        for client, batch in events.items():
            self._send(client, TokenEvents(tuple(batch)))
        self._rounds += bool(events)

    def _send(self, client: bytes, message: Ready | TokenEvents | EngineStats) -> None:
        self._socket.send_multipart([client, self._encode(message)])


if __name__ == "__main__":
    InstantEngine(*sys.argv[1:]).run()
