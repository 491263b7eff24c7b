"""One sequence: its request, and its state in the scheduler."""

from __future__ import annotations

from dataclasses import dataclass, field

from motet.core.messages import AddRequest
from motet.engine.schedule.priority import Precedence


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt and its output so far. Compared by identity: comparing by value takes milliseconds per step.

    The keys and values of the first `num_computed_tokens` tokens (prompt, then output) are in `blocks`.
    `num_unread` tokens are sampled by steps that have been scheduled, but are not in `output` yet.
    `sampled_row` is the row of the last step that sampled the newest token; the next step feeds that row's result.
    None: the next step feeds the token's id. The output ends with `max_output` tokens at the latest. `start_time` is
    the time of the first step. A `blocked` sequence is in no step, because its grammar has not computed the next mask
    yet.
    """

    request: AddRequest
    client: bytes
    precedence: Precedence
    arrival_time: float
    max_output: int
    output: list[int] = field(default_factory=list)
    num_unread: int = 0
    blocks: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    slot: int | None = None
    sampled_row: int | None = None
    start_time: float | None = None
    blocked: bool = False
    ending_ids: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        self.ending_ids = self.request.params.ending_ids()  # once: every step looks at it

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether the next steps compute the prompt's logprobs."""
        return self.request.params.prompt_logprobs is not None and not self.num_generated

    @property
    def id(self) -> str:
        """The request's id."""
        return self.request.id

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and output, with those that are unread."""
        return len(self.request.prompt) + self.num_generated

    @property
    def num_generated(self) -> int:
        """Tokens of the output, with those that are unread."""
        return len(self.output) + self.num_unread

    @property
    def num_pending_tokens(self) -> int:
        """Tokens that are not computed yet: the rest of the prompt, or the newest output token."""
        return self.num_tokens - self.num_computed_tokens

    @property
    def sampled_index(self) -> int:
        """The place in the output of the token that the scheduled step samples, 0 for the first."""
        return self.num_generated - 1

    @property
    def can_run(self) -> bool:
        """Whether the sequence can be in the next step, as far as its own state is concerned."""
        return not self.blocked and self.num_pending_tokens > 0 and self.num_generated < self.max_output

    def has_same_prompt(self, other: Sequence) -> bool:
        """Whether prompt and adapter, and so the prompt's keys and values, are the same."""
        return self.request.prompt == other.request.prompt and self.request.adapter == other.request.adapter

    def tokens(self, start: int, stop: int) -> tuple[int, ...]:
        """The token ids [start, stop) of prompt and output. None of them is unread."""
        prompt = self.request.prompt
        if stop <= len(prompt):
            return tuple(prompt[start:stop])
        return (*prompt[start:], *self.output[max(0, start - len(prompt)) : stop - len(prompt)])
