"""From text to token shards in one call: trains the tokenizer on the files that it then encodes.

    files ── count ──▶ merges ──▶ Tokenizer ── its most frequent words ──▶ warm caches ── encode ──▶ shards

The shards are byte for byte those of `Tokenizer.train` followed by `prepare`.
"""

from collections.abc import Iterable, Sequence
from typing import Unpack

from gptrs.corpus import AnyPath, check_text_field, expand
from gptrs.dataset import Dataset, DocumentOptions, check_options, prepare
from gptrs.tokenizer import Tokenizer
from gptrs.trainer import Options, check_saves


def train_and_prepare(
    files: AnyPath | Iterable[AnyPath],
    vocab_size: int,
    out: AnyPath,
    *,
    save: AnyPath | None = None,
    shard_tokens: int = 1 << 27,
    append_eot: bool = True,
    loss_fields: Sequence[str] = (),
    documents: DocumentOptions | None = None,
    **options: Unpack[Options],
) -> tuple[Tokenizer, Dataset]:
    """A tokenizer trained on files, and the same files as token shards in the folder `out`.

    When the work is cut off, the same call again trains the same tokenizer and goes on behind the last whole shard.

    Args:
        files: Paths, globs and folders, as for `Tokenizer.train`.
        vocab_size: Ids in all.
        out: The folder to write; one that holds another dataset is refused.
        save: Where to write tokenizer.json, before the first shard; None leaves that to the caller.
        shard_tokens: Tokens in a shard, the last one excepted.
        append_eot: Write the tokenizer's end-of-text id after each document, if it has one.
        loss_fields: Fields whose tokens alone are to be predicted, as for `prepare`.
        documents: Which documents are written, as for `prepare`; the tokenizer is trained on the files as they are.
        options: Those of `Tokenizer.train`; `text_field`, `threads` and `progress` hold for both steps. What
            `held_out` keeps from training is encoded as well.

    Raises:
        ValueError: An argument is out of range, the corpus is empty or not UTF-8, or `out` holds another dataset.
        OSError: A file cannot be read or written.
    """
    shared = {"text_field": options.get("text_field", "text"), "threads": options.get("threads", 0)}
    sizes = {"shard_tokens": shard_tokens, "append_eot": append_eot, "loss_fields": loss_fields}
    check_options({**shared, **sizes, **(documents or {})})
    paths = expand(files)
    check_text_field(paths, options.get("text_field", "text"))
    if save is not None:
        check_saves(save, options.get("pattern"))
    tokenizer = Tokenizer.train(paths, vocab_size, **options)
    if save is not None:
        tokenizer.save(save)
    dataset = prepare(
        paths,
        tokenizer,
        out,
        shard_tokens=shard_tokens,
        append_eot=append_eot,
        loss_fields=loss_fields,
        text_field=options.get("text_field", "text"),
        threads=options.get("threads", 0),
        progress=options.get("progress", True),
        **(documents or {}),
    )
    return tokenizer, dataset
