"""A tokenizer whose added tokens an adapter has renamed, or added to. The base's vocabulary is shared, not copied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokenizers import AddedToken as LibraryToken
from tokenizers import Tokenizer

from motet.core.adapter_tokens import AddedToken
from motet.core.errors import AdapterRefused


def renamed(base: Tokenizer, tokens: Sequence[AddedToken]) -> tuple[Tokenizer, Mapping[int, int]]:
    """`base` with `tokens` in the places of their ids, and what the ids that the library gave them stand for.

    The library numbers added tokens itself; only one whose name the vocabulary has, or that comes next, gets the id
    that it should have. Raises AdapterRefused where that cannot be told apart from another token.
    """
    tokenizer = Tokenizer(base.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if (value := getattr(base, part)) is not None:
            setattr(tokenizer, part, value)
    kept = base.get_added_tokens_decoder()
    wanted = kept | {token.id: _library_token(token) for token in tokens}
    # In the order of ids, since the next free id is given to a name that the vocabulary lacks; those whose place is
    # in the vocabulary come last, and so take no id of the others'.
    vocabulary = base.get_vocab_size(with_added_tokens=False)
    changed = {token.id for token in tokens}
    order = sorted(wanted, key=lambda id: (id in changed and id < vocabulary, id))
    tokenizer.add_tokens([wanted[id] for id in order])
    places = {}
    for id in order:
        given = tokenizer.token_to_id(wanted[id].content)
        if given == id:
            continue
        if given is None or given in kept or given < vocabulary or given in wanted:
            raise AdapterRefused(
                f"the adapter's tokenizer: token {id} ({wanted[id].content!r}) cannot have this id", param="model"
            )
        places[given] = id
    return tokenizer, places


def _library_token(token: AddedToken) -> LibraryToken:
    return LibraryToken(
        token.content,
        special=token.special,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
    )
