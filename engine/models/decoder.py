"""The decoder: one file for every architecture in models/architectures.py. Each rank runs its shard.

T is the number of tokens in the step, n the hidden size. There is no LoRA here: the linear layers add it
(layers/linear.py), once the model runner has attached the adapter pools to them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from motet.engine.checkpoint import Checkpoint
from motet.engine.distributed.process_group import ShardGroup
from motet.engine.kernels.matmul import Weight
from motet.engine.kernels.quantized_weight import Quantization
from motet.engine.layers.attention import AttentionBackend
from motet.engine.layers.elementwise import RMSNorm, silu_mul
from motet.engine.layers.forward_context import ForwardContext
from motet.engine.layers.linear import ParallelLinear
from motet.engine.layers.rotary import RotaryTable
from motet.engine.layers.vocabulary import VocabularyShard
from motet.engine.models.architectures import ModelConfig
from motet.engine.models.linear_specs import linear_specs


class Layer:
    """One decoder layer: attention and a gated MLP, each with a norm before it and a residual sum."""

    def __init__(self, config: ModelConfig, index: int, group: ShardGroup, quantization: Quantization = "none") -> None:
        self.index = index
        self._config = config
        specs = linear_specs(config)
        self.linears = {name: ParallelLinear(spec, group, quantization) for name, spec in specs.items()}
        self._heads = config.num_heads // group.tp_size
        self._kv_heads = config.kv_heads_per_rank(group.tp_size)
        self.input_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.post_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self._q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self._k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None

    def load(self, checkpoint: Checkpoint) -> None:
        """Read this layer's tensors."""
        prefix = f"model.layers.{self.index}"
        for linear in self.linears.values():
            linear.load(checkpoint, prefix)
        self.input_norm.load(checkpoint, f"{prefix}.input_layernorm")
        self.post_norm.load(checkpoint, f"{prefix}.post_attention_layernorm")
        if self._q_norm is not None and self._k_norm is not None:
            self._q_norm.load(checkpoint, f"{prefix}.self_attn.q_norm")
            self._k_norm.load(checkpoint, f"{prefix}.self_attn.k_norm")

    def attend(self, x: Tensor, context: ForwardContext, attention: AttentionBackend, rotary: RotaryTable) -> Tensor:
        """The attention half: x [T, n], normalised, to [T, n]."""
        qkv = self.linears["qkv"](x, context)
        if self._q_norm is not None and self._k_norm is not None:
            self._q_norm.heads(qkv, 0, self._heads)
            self._k_norm.heads(qkv, self._heads * self._config.head_dim, self._kv_heads)
        attention.store(self.index, qkv, context, rotary if self._config.rotates[self.index] else None)
        attended = attention(self.index, self._config.window[self.index], qkv, context)
        return self.linears["o"](attended, context)

    def feed_forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        """The MLP half: x [T, n], normalised, to [T, n]."""
        gate_up = self.linears["gate_up"](x, context)
        return self.linears["down"](silu_mul(gate_up), context)


@dataclass(frozen=True)
class HiddenStates:
    """The last hidden states [rows, n] of the context's sample_rows, prompt_logprob_rows and pooling_rows."""

    sample: Tensor
    prompt_logprobs: Tensor
    pooling: Tensor


class Decoder:
    """The whole model on one rank."""

    def __init__(
        self, config: ModelConfig, group: ShardGroup, device: torch.device, quantization: Quantization = "none"
    ) -> None:
        """`quantization` is that of the linear layers; the embedding and the head are never quantised."""
        self.config = config
        self.group = group
        self._device = device
        self.layers = [Layer(config, i, group, quantization) for i in range(config.num_layers)]
        self._norm = RMSNorm(config.hidden_size, config.norm_eps)
        self._vocabulary = VocabularyShard(config.vocab_size, config.hidden_size, group)
        self._rotary = RotaryTable(config.inverse_frequencies, config.rope_scale, config.max_context, device)
        self._embedding: Tensor
        self._head: Weight

    def load(self, checkpoint: Checkpoint) -> None:
        """Read this rank's slices. Raises StartupError on a missing, misshapen or unused tensor."""
        self._embedding = self._vocabulary.read(checkpoint, "model.embed_tokens.weight")
        tied = self.config.tied_embeddings
        head = self._embedding if tied else self._vocabulary.read(checkpoint, "lm_head.weight")
        self._head = Weight(head)
        for layer in self.layers:
            layer.load(checkpoint)
        self._norm.load(checkpoint, "model.norm")
        # Scales for activations and the KV cache, which are computed here, or not rounded at all.
        ignorable = r".*rotary_emb\.inv_freq|.*\.(input|output|k|v)_scale"
        checkpoint.finish(ignorable + (r"|lm_head\.weight" if tied else ""))

    def forward(self, ids: Tensor, context: ForwardContext, attention: AttentionBackend) -> HiddenStates:
        """Run the step; returns the hidden states after the final norm of the context's rows. ids is [T] int64."""
        residual = self._vocabulary.embed(self._embedding, ids)
        x: Tensor | None = None
        for layer in self.layers:
            normed = layer.input_norm(residual) if x is None else layer.input_norm.add(x, residual)
            x = layer.attend(normed, context, attention, self._rotary)
            x = layer.feed_forward(layer.post_norm.add(x, residual), context)
        assert x is not None, "a model has at least one layer"
        output, last_residual = x, residual

        def states(rows: Tensor) -> Tensor:
            if not len(rows):
                return output[:0]
            # Unlike an index in brackets, this takes int32 rows as they are.
            return self._norm.add(output.index_select(0, rows), last_residual.index_select(0, rows))

        return HiddenStates(
            sample=states(context.sample_rows),
            prompt_logprobs=states(context.prompt_logprob_rows),
            pooling=states(context.pooling_rows),
        )

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor | None:
        """fp32 logits [N, vocab] of hidden states [N, n] on rank 0, None on the others. Every rank must call it.

        They are in `out`, if it is given.
        """
        return self._vocabulary.logits(self._head, hidden, out) if len(hidden) else None
