"""Reads the end-of-text tokens in an adapter's generation_config.json, which are added to the base's."""

from __future__ import annotations

import json
from pathlib import Path

from motet.core.errors import AdapterRefused
from motet.core.paths import read_regular
from motet.engine.adapters.peft_config import MAX_CONFIG_BYTES

MAX_EOS_TOKENS = 64
_FILE = "generation_config.json"


def read_eos_token_ids(directory: Path, vocab_size: int) -> tuple[int, ...]:
    """`eos_token_id`, one id or a list; none without the file. Raises AdapterRefused with the file and field."""
    try:
        value = json.loads(read_regular(directory / _FILE, MAX_CONFIG_BYTES))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise AdapterRefused(f"the adapter's {_FILE} cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise AdapterRefused(f"the adapter's {_FILE} is nested too deeply") from error
    except ValueError as error:
        raise AdapterRefused(f"the adapter's {_FILE} is not a JSON object: {error}") from error
    if not isinstance(value, dict):
        raise AdapterRefused(f"the adapter's {_FILE} is not a JSON object")
    eos = value.get("eos_token_id")
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if len(ids) > MAX_EOS_TOKENS:
        raise AdapterRefused(
            f"the adapter's {_FILE}: eos_token_id lists {len(ids)} tokens; the limit is {MAX_EOS_TOKENS}"
        )
    if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < vocab_size for i in ids):
        raise AdapterRefused(f"the adapter's {_FILE}: eos_token_id must be ids in 0..{vocab_size - 1}")
    return tuple(dict.fromkeys(ids))
