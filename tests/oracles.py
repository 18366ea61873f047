"""Slow twins written from the definitions, and the peers set up from our own vocabularies."""

from collections.abc import Iterator
from itertools import pairwise

import regex
import tiktoken

import gptrs


def tiktoken_of(tokenizer: gptrs.Tokenizer) -> tiktoken.Encoding:
    """tiktoken with this tokenizer's tokens; in a vocabulary of ours the id is the rank."""
    specials = tokenizer.special_tokens
    ids = (i for i in range(tokenizer.vocab_size) if i not in specials.values())
    ranks = {token: i for i in ids if (token := tokenizer.id_to_token(i)) is not None}
    return tiktoken.Encoding("ours", pat_str=tokenizer.core.regex, mergeable_ranks=ranks, special_tokens=specials)


def pieces(tokenizer: gptrs.Tokenizer, text: bytes) -> Iterator[bytes]:
    """The pieces of `text` by the regex alone; gaps between matches and invalid bytes are pieces too."""
    for chunk in utf8_chunks(text):
        if isinstance(chunk, bytes):
            yield chunk
            continue
        at = 0
        for match in regex.finditer(tokenizer.core.regex, chunk):
            if match.start() > at:
                yield chunk[at : match.start()].encode()
            if match.group():
                yield match.group().encode()
            at = match.end()
        if at < len(chunk):
            yield chunk[at:].encode()


def utf8_chunks(text: bytes) -> Iterator[str | bytes]:
    """Valid stretches as str, each invalid sequence as bytes."""
    while text:
        try:
            yield text.decode("utf-8")
            return
        except UnicodeDecodeError as error:
            if error.start:
                yield text[: error.start].decode("utf-8")
            yield text[error.start : error.end]
            text = text[error.end :]


def merge_piece(tokenizer: gptrs.Tokenizer, piece: bytes) -> list[int]:
    """Byte-pair encoding as one would do it by hand: while any two neighbours make a token, join the lowest."""
    specials = set(tokenizer.special_tokens.values())
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while True:
        joined = [(tokenizer.token_to_id(a + b), i) for i, (a, b) in enumerate(pairwise(parts))]
        best = min(((rank, i) for rank, i in joined if rank is not None and rank not in specials), default=None)
        if best is None:
            break
        i = best[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    ids = [tokenizer.token_to_id(part) for part in parts]
    assert None not in ids, (piece, ids)
    return [i for i in ids if i is not None]


def encode(tokenizer: gptrs.Tokenizer, text: bytes) -> list[int]:
    """The ordinary ids of `text`, slowly."""
    known: dict[bytes, list[int]] = {}
    ids: list[int] = []
    for piece in pieces(tokenizer, text):
        if piece not in known:
            known[piece] = merge_piece(tokenizer, piece)
        ids += known[piece]
    return ids
