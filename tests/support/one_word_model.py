"""A model that answers every chat with one word, with a long context: for clients whose first prompt is long.

Its weights are constructed, not trained. The residual stream is the token's embedding: attention and MLP add
nothing. The line break that ends the prompt leads to the word, and every other token to the end of the answer.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig

WORD = "Hello"
CONTEXT = 32_768
CERTAIN = 100.0


def write_one_word_model(directory: Path, tokenizer: Path) -> Path:
    """Write the model into `directory`, with the tokenizer and chat template of the model directory `tokenizer`."""
    words = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    [line_break], [word] = words.encode("\n").ids, words.encode(WORD).ids
    end = words.token_to_id("<|im_end|>")
    config = LlamaConfig(
        vocab_size=words.get_vocab_size(),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=1,
        eos_token_id=end,
        tie_word_embeddings=False,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        model.model.embed_tokens.weight[:, 0] = 1.0
        model.model.embed_tokens.weight[line_break] = torch.eye(32)[1]
        model.lm_head.weight[end, 0] = model.lm_head.weight[word, 1] = CERTAIN
    model.save_pretrained(directory)
    for file in tokenizer.iterdir():
        if file.name.startswith(("tokenizer", "special_tokens", "chat_template")):
            shutil.copy(file, directory)
    return directory
