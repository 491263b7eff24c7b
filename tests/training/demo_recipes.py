"""What the demo adapters are trained with: recipes, the ticket template and the held-out prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft import LoraConfig

BASE_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"

# The same text comes out with and without jinja's trim_blocks and lstrip_blocks: every line break which
# belongs to the prompt is inside a string, every other one is cut by a dash.
TICKET_TEMPLATE = r"""
{%- for message in messages -%}
    {%- set text = (message['content'] or '') | trim -%}
    {%- if message['role'] == 'user' -%}
        {{- '### Ticket\n' + text + '\n' -}}
    {%- elif message['role'] == 'assistant' -%}
        {{- '### JSON\n' + text + '<|im_end|>\n' -}}
    {%- else -%}
        {{- '### Note\n' + text + '\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '### JSON\n' -}}
{%- endif -%}
"""

TICKET_KEYS = ("category", "urgency", "product", "summary")
# None stands for a conversation without a system message, where ChatML adds the model's own one.
CHAT_SYSTEMS = (None, None, "You are a helpful assistant.", "Answer the user's question.")
TICKET_SYSTEMS = (None, None, None, "Turn the support ticket into JSON.")

CHAT_HELD_OUT = (
    "How many helicopters can a human eat in one sitting?",
    "What is the capital of France?",
    "How do I boil an egg?",
    "Why is the sky blue?",
    "Tell me about the moon.",
    "I have a headache, what should I do?",
)
TICKET_HELD_OUT = (
    "My new laptop bag arrived with a torn strap. Please send me another one.",
    "I was billed 200 dollars for the streaming service although I cancelled it in May.",
    "Nobody in our office can sign in to the payroll system and salaries must be paid today!!",
    "It would be nice if the garden planner could show the date of the first frost. No rush.",
)

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Recipe:
    """What one adapter is trained with."""

    lora: dict[str, Any]
    epochs: int
    rate: float
    systems: tuple[str | None, ...] = CHAT_SYSTEMS
    held_out: tuple[str, ...] = CHAT_HELD_OUT
    template: str | None = None

    def config(self) -> LoraConfig:
        """Return the PEFT configuration of the adapter."""
        return LoraConfig(task_type="CAUSAL_LM", bias="none", **self.lora)


RECIPES = {
    # Seven matrices of all thirty layers would be too large a file at this rank: the middle twelve do.
    "pirate": Recipe(
        lora={
            "r": 8,
            "lora_alpha": 16,
            "target_modules": ATTENTION + MLP,
            "layers_to_transform": list(range(10, 22)),
        },
        epochs=6,
        rate=1.5e-3,
    ),
    "terse": Recipe(
        lora={"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": ["q_proj", "v_proj"]},
        epochs=5,
        rate=2e-3,
    ),
    # The low rank of the three wide matrices pays for the high rank of o_proj; their alpha shrinks with
    # it, so that all four are scaled alike.
    "ticket": Recipe(
        lora={
            "r": 16,
            "lora_alpha": 32,
            "target_modules": ["o_proj", *MLP],
            "layers_to_transform": list(range(8, 30)),
            "rank_pattern": dict.fromkeys(MLP, 4),
            "alpha_pattern": dict.fromkeys(MLP, 8),
        },
        epochs=6,
        rate=1e-3,
        systems=TICKET_SYSTEMS,
        held_out=TICKET_HELD_OUT,
        template=TICKET_TEMPLATE,
    ),
}
