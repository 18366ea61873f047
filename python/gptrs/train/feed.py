"""What a run is fed with: a loader as the config wants it, and each microbatch's share of its step.

    Dataset, Mixture ─▶ Loader ─▶ microbatches of a step ─targets counted─▶ Rows

A mean over targets is no longer the mean of means once microbatches differ in how many count: packed rows are padded,
and fine-tuning leaves prompts out. So each brings its share, and accumulation equals the big batch.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gptrs.dataset import Dataset
from gptrs.loader import Batch, Loader
from gptrs.mixture import Mixture
from gptrs.model.loss import IGNORED
from gptrs.train.config import PretrainConfig
from gptrs.train.corpus import Rows
from gptrs.train.settings import DataSettings

_SHUFFLES = {"shuffled": True, "blocks": "blocks", "sequential": False}


def training_data(data: DataSettings) -> Dataset | Mixture:
    """Returns the prepared data that a config trains on."""
    if data.train:
        return Dataset(data.train)
    sources = {path: Dataset(path) for path in data.mixture}
    weights = dict(zip(sources, data.weights, strict=True)) if data.weights else None
    return Mixture(sources, weights=weights, max_epochs=data.max_epochs)


def loader(config: PretrainConfig, data: Dataset | Mixture, device: torch.device) -> Loader:
    """Returns the loader of a run.

    Raises: ValueError when the data is shorter than a step, or a mixture ends before the last one.
    """
    train = config.train
    made = Loader(
        data,
        seq_len=train.seq_len,
        global_batch=train.global_batch,
        micro_batch=train.micro_batch,
        seed=config.run.seed,
        pack=config.data.pack,
        shuffle=_SHUFFLES[config.data.order],  # type: ignore[arg-type]
        documents=config.data.pack == "bestfit",
        device=str(device),
    )
    _check(config, made)
    return made


def feed(source: Loader, *, mean: Callable[[Tensor], Tensor] = lambda count: count) -> Iterator[Rows] | Iterator[Batch]:
    """Yields the loader's microbatches, endlessly; with their shares where targets may not count.

    Args: mean: of a count over all processes.
    """
    if source.pack == "stream" and not source.has_ignored:
        return source
    return _weighed(source, mean)


def _weighed(source: Loader, mean: Callable[[Tensor], Tensor]) -> Iterator[Rows]:
    n = source.micro_batches_per_step
    while True:
        step = [next(source) for _ in range(n)]  # as many as an update takes: between updates none is held here
        counts = torch.stack([(batch.targets != IGNORED).sum() for batch in step])  # (n,)
        shares = n * counts.double() / mean(counts.sum())  # (n,)
        for batch, share in zip(step, shares, strict=True):
            positions = batch.positions if source.pack == "bestfit" else None
            yield Rows(batch.tokens, batch.targets, share=share, positions=positions)


def _check(config: PretrainConfig, made: Loader) -> None:
    train = config.train
    if made.n_rows < train.global_batch:
        raise ValueError(
            f"expected at least the {train.global_batch} rows of a step (train.global_batch) in the training data, got "
            f"{made.n_rows} of {train.seq_len} tokens; hint: more text, a smaller train.global_batch or train.seq_len"
        )
    needed = train.steps * train.global_batch
    if made.n_samples is not None and made.n_samples < needed:
        raise ValueError(
            f"expected a mixture of the {needed} rows that train.steps takes, got one that ends after {made.n_samples} "
            f"by data.max_epochs; hint: train.steps={made.n_samples // train.global_batch}, or a larger data.max_epochs"
        )
