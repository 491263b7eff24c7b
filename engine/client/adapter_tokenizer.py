"""Builds the tokenizer of an adapter that renames or adds tokens. The base's vocabulary is shared, not copied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokenizers import AddedToken as LibraryToken
from tokenizers import Tokenizer

from motet.core.adapter_tokens import AddedToken
from motet.core.errors import AdapterRefused


def adapter_tokenizer(base: Tokenizer, tokens: Sequence[AddedToken]) -> tuple[Tokenizer, Mapping[int, int]]:
    """`base` with `tokens` added, and a map from the library's ids to the ids that `tokens` should have.

    The library numbers added tokens itself: a token gets its own id only if its name is in the vocabulary or its id is
    the next free one. Raises AdapterRefused if the library's id belongs to another token.
    """
    tokenizer = Tokenizer(base.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if (value := getattr(base, part)) is not None:
            setattr(tokenizer, part, value)
    base_tokens = base.get_added_tokens_decoder()
    all_tokens = base_tokens | {token.id: _library_token(token) for token in tokens}
    # In the order of ids, since a name that the vocabulary lacks gets the next free id. Tokens that replace one of the
    # vocabulary come last, so that they take no id of another token.
    vocabulary = base.get_vocab_size(with_added_tokens=False)
    changed = {token.id for token in tokens}
    order = sorted(all_tokens, key=lambda id: (id in changed and id < vocabulary, id))
    tokenizer.add_tokens([all_tokens[id] for id in order])
    model_ids = {}
    for id in order:
        library_id = tokenizer.token_to_id(all_tokens[id].content)
        if library_id == id:
            continue
        if library_id is None or library_id < vocabulary or library_id in all_tokens:
            raise AdapterRefused(
                f"the adapter's tokenizer: token {id} ({all_tokens[id].content!r}) cannot have this id", param="model"
            )
        model_ids[library_id] = id
    return tokenizer, model_ids


def _library_token(token: AddedToken) -> LibraryToken:
    return LibraryToken(
        token.content,
        special=token.special,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
    )
