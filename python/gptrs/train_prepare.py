"""From text to token shards in one call: trains the tokenizer on the files that it then encodes.

    files ── count ──▶ merges ──▶ Tokenizer ── its most frequent words ──▶ warm caches ── encode ──▶ shards

The shards are byte for byte those of `Tokenizer.train` followed by `prepare`.
"""

from collections.abc import Iterable, Sequence

from gptrs.corpus import AnyPath, expand
from gptrs.data import Dataset, prepare
from gptrs.tokenizer import Tokenizer


def train_and_prepare(
    files: AnyPath | Iterable[AnyPath],
    vocab_size: int,
    out: AnyPath,
    *,
    pattern: str = "gpt2",
    special_tokens: Sequence[str] = ("<|endoftext|>",),
    min_count: int = 1,
    text_field: str = "text",
    shard_tokens: int = 1 << 27,
    append_eot: bool = True,
    save: AnyPath | None = None,
    threads: int = 0,
    progress: bool = True,
) -> tuple[Tokenizer, Dataset]:
    """A tokenizer trained on files, and the same files as token shards in the folder `out`.

    When the work is cut off, the same call again trains the same tokenizer and goes on behind the last whole shard.

    Args:
        files, vocab_size, pattern, special_tokens, min_count, text_field: As for `Tokenizer.train`.
        out, shard_tokens, append_eot: As for `prepare`.
        save: Where to write tokenizer.json, before the first shard; None leaves that to the caller.
        threads: Threads to use; 0 means all cores. The bytes do not depend on it.
        progress: Show a progress bar when stderr is a terminal.

    Raises:
        ValueError: An argument is out of range, the corpus is empty or not UTF-8, or `out` holds another dataset.
        OSError: A file cannot be read or written.
    """
    paths = expand(files)
    tokenizer = Tokenizer.train(
        paths,
        vocab_size,
        pattern=pattern,
        special_tokens=special_tokens,
        min_count=min_count,
        text_field=text_field,
        threads=threads,
        progress=progress,
    )
    if save is not None:
        tokenizer.save(save)
    dataset = prepare(
        paths,
        tokenizer,
        out,
        text_field=text_field,
        shard_tokens=shard_tokens,
        append_eot=append_eot,
        threads=threads,
        progress=progress,
    )
    return tokenizer, dataset
