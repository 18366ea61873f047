"""What a run is fed with: the corpus that its config names, and a loader of it."""

from pathlib import Path
from typing import Literal

from gptrs import holdout
from gptrs.corpus import check_text_field
from gptrs.dataset import Dataset
from gptrs.loader import Loader
from gptrs.mixture import Mixture
from gptrs.train import corpus
from gptrs.train.config import PretrainConfig
from gptrs.train.corpus import Corpus
from gptrs.train.distributed import World
from gptrs.train.settings import DataSettings

_SHUFFLES: dict[str, bool | Literal["blocks"]] = {"shuffled": True, "blocks": "blocks", "sequential": False}


def training_data(data: DataSettings) -> Dataset | Mixture:
    """Returns the prepared data that a config trains on."""
    if data.train:
        return Dataset(data.train)
    sources = {path: Dataset(path) for path in data.mixture}
    weights = dict(zip(sources, data.weights, strict=True)) if data.weights else None
    return Mixture(sources, weights=weights, max_epochs=data.max_epochs)


def check_sources(config: PretrainConfig, *, is_fresh: bool) -> None:
    """Sees that text, datasets and tokenizer are there, before a directory is made or cleared for a run on them.

    Raises: ValueError and OSError as `corpus_of`.
    """
    data, tokenizer = config.data, config.tokenizer.path
    if data.is_prepared and data.val:
        training_data(data)
        Dataset(data.val)
    else:
        check_text_field(map(str, holdout.files_of(data.text)), data.text_field)
    is_kept = not (is_fresh or data.is_prepared) and (config.run.path / "tokenizer.json").is_file()
    if tokenizer and not is_kept and not Path(tokenizer).exists():
        raise FileNotFoundError(f"expected a tokenizer at tokenizer.path, found none at {tokenizer}; hint: check it")


def corpus_of(config: PretrainConfig, world: World) -> Corpus:
    """Returns tokenizer, training part and held-out part; rank 0 makes what is not there yet, before the others come.

    Raises: ValueError and OSError for text, tokenizers and datasets that do not fit.
    """
    data, tokenizer = config.data, config.tokenizer
    if not world.is_main:
        return corpus.made(config.run.path, training_data(data) if data.is_prepared else None, data.val)
    if data.is_prepared and data.val and tokenizer.path:
        return corpus.from_datasets(training_data(data), data.val, tokenizer.path, config.run.path)
    return corpus.from_text(
        data.text,
        config.run.path,
        val_fraction=data.val_fraction,
        text_field=data.text_field,
        tokenizer_path=tokenizer.path,
        vocab_size=tokenizer.vocab_size,
        pattern=tokenizer.pattern,
        special_tokens=tokenizer.special_tokens,
        threads=config.run.threads,
    )


def loader(config: PretrainConfig, data: Dataset | Mixture, world: World) -> Loader:
    """Returns the loader of a run; packed rows come with their pieces.

    Raises: ValueError when the data is shorter than a step, or a mixture ends before the last one.
    """
    train = config.train
    made = Loader(
        data,
        seq_len=train.seq_len,
        global_batch=train.global_batch,
        micro_batch=train.rows(world.data_size),
        rank=world.data_rank,
        world_size=world.data_size,
        seed=config.run.seed,
        pack=config.data.pack,
        shuffle=_SHUFFLES[config.data.order],
        documents=config.data.pack == "bestfit",
        device=str(world.device),
    )
    if made.n_rows < train.global_batch:
        raise ValueError(
            f"expected at least the {train.global_batch:,} rows of a step (train.global_batch) in the training data, "
            f"got {made.n_rows:,} of {train.seq_len:,} tokens; "
            "hint: more text, a smaller train.global_batch or train.seq_len"
        )
    needed = train.rows_before(train.steps, data_size=world.data_size)
    if made.n_samples is not None and made.n_samples < needed:
        raise ValueError(
            f"expected a mixture of the {needed:,} rows that train.steps takes, got one that ends after "
            f"{made.n_samples:,} by data.max_epochs; "
            f"hint: train.steps={made.n_samples // train.global_batch}, or a larger data.max_epochs"
        )
    return made
