"""One sequence: what was asked, and what the engine knows of it so far. No tensors, no text."""

from __future__ import annotations

from dataclasses import dataclass, field

from motet.core.messages import AddRequest


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt being continued. Equal to itself alone: comparing by value would cost a busy step many milliseconds.

    `computed` tokens (prompt first, then output) have their keys and values in `blocks`. `sampled_row` is the
    row of the last step that sampled the newest output token, while that token exists on the ranks only as
    "what row j sampled"; None once it has to be fed literally. `started` is when it ran first. While it is `held` it
    sits out: what may follow its newest token is not known yet. `turn` is its place among the sequences of all owners.
    """

    request: AddRequest
    client: bytes
    number: int
    arrived: float
    output: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    slot: int | None = None
    sampled_row: int | None = None
    started: float | None = None
    held: bool = False
    turn: int = 0
    ending_ids: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        self.ending_ids = self.request.params.ending_ids()  # once: every step looks at it

    @property
    def precedence(self) -> tuple[int, int, int]:
        """Lower goes first: by priority, then by the owner's turn, then in the order of arrival."""
        return self.request.priority, self.turn, self.number

    @property
    def wants_scores(self) -> bool:
        """Whether the prompt's logprobs are still to be computed."""
        return self.request.params.prompt_logprobs is not None and not self.output

    @property
    def id(self) -> str:
        """The request's id."""
        return self.request.id

    @property
    def length(self) -> int:
        """Tokens of prompt and output together."""
        return len(self.request.prompt) + len(self.output)

    @property
    def pending(self) -> int:
        """Tokens that are known and not computed yet: a prompt's rest, or the one just sampled."""
        return self.length - self.computed

    def begins_like(self, other: Sequence) -> bool:
        """Whether both prompts have the same keys and values."""
        return self.request.prompt == other.request.prompt and self.request.adapter == other.request.adapter

    def tokens(self, start: int, stop: int) -> tuple[int, ...]:
        """Token ids [start, stop) of prompt and output."""
        prompt = self.request.prompt
        if stop <= len(prompt):
            return tuple(prompt[start:stop])
        return (*prompt[start:], *self.output[max(0, start - len(prompt)) : stop - len(prompt)])
