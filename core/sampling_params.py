"""The sampling parameters of a request, which the API sends to the engine."""

from __future__ import annotations

import msgspec

MAX_TOP_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024
MASK64 = (1 << 64) - 1


class SamplingParams(msgspec.Struct, frozen=True, omit_defaults=True):
    """One request's sampling parameters; the API has filled in every default.

    temperature 0 is greedy. top_k 0, top_p 1, min_p 0 and typical_p 1 are off. `repetition_penalty` applies to prompt
    and output, `presence_penalty` and `frequency_penalty` to the output only. `logprobs` is the number of alternatives
    to report with the sampled token (0: only the sampled one; None: nothing); `prompt_logprobs` is the same for the
    prompt's tokens. `eos_token_ids` end the output unless `ignore_eos` is set; `stop_token_ids` always do. Neither
    can be sampled before `min_tokens`.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    seed: int = 0
    min_tokens: int = 0
    eos_token_ids: tuple[int, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def ending_ids(self) -> frozenset[int]:
        """The token ids that end this request's output."""
        return frozenset(self.stop_token_ids if self.ignore_eos else self.eos_token_ids + self.stop_token_ids)


def splitmix64(x: int) -> int:
    """One step of SplitMix64: a 64-bit hash whose outputs for consecutive inputs look independent.

    Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    x = (x + 0x9E3779B97F4A7C15) & MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK64
    return x ^ (x >> 31)


def choice_seed(seed: int, choice: int) -> int:
    """The seed of choice number `choice` of a request: choice 0 uses `seed` itself, others a 63-bit hash of both."""
    return seed & MASK64 if choice == 0 else splitmix64((seed & MASK64) ^ splitmix64(choice)) >> 1


def uniform(seed: int, position: int) -> float:
    """The uniform random number in [0, 1) for an output position; depends only on `seed` and `position`."""
    return (splitmix64(splitmix64(seed & MASK64) ^ position) >> 11) * 2.0**-53
