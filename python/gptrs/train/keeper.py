"""A run's checkpoints, whatever its ranks share: saved beside the training, restored by any number of ranks.

    one process, or ranks that hold whole tensors or parts along an axis ─▶ each its pieces, all together
    ranks that share heads and inner widths ("tensor") ─ gathered ─▶ rank 0 as one process

The parts of "tensor" ranks stand in an order of their own (see `cuts`), so they are put back in the plain model's.
"""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gptrs.model import Transformer
from gptrs.train import checkpoint
from gptrs.train.average import Average
from gptrs.train.config import OptimSettings, TrainSettings
from gptrs.train.cuts import part, whole
from gptrs.train.optim import optimizer_of
from gptrs.train.rng import reseed
from gptrs.train.saver import Saver
from gptrs.train.spread import Spread


class Keeper:
    """Saves and restores a model as it is spread over ranks, its optimizer and the running mean of its weights."""

    def __init__(
        self,
        directory: Path,
        spread: Spread,
        optimizer: torch.optim.Optimizer,
        average: Average | None,
        *,
        train: TrainSettings,
        optim: OptimSettings,
        seed: int,
        on_failure: Callable[[int, OSError], None],
    ) -> None:
        """Every rank makes one.

        Args: on_failure: what a step that could not be saved is told to, on rank 0.
        Raises: OSError where nothing can be saved.
        """
        self.directory = directory
        self.spread, self.optimizer, self.average = spread, optimizer, average
        self._optim, self._seed = optim, seed
        self._is_gathered = bool(spread.cuts)
        world = spread.world
        self._group: dist.ProcessGroup | None = None
        if world.size > 1 and not self._is_gathered:
            group = dist.new_group(backend="gloo")
            assert isinstance(group, dist.ProcessGroup), "of all ranks"
            self._group = group
        self._saver: Saver | None = None
        if world.is_main or not self._is_gathered:
            self._saver = Saver(
                directory,
                keep=train.keep_checkpoints,
                keep_best=train.keep_best,
                is_async=train.checkpoint_async,
                group=self._group,
                on_failure=on_failure if world.is_main else None,
            )

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Begins the checkpoint of a step. Every rank calls it; rank 0's state counts."""
        means = {} if self.average is None else {"ema": self.average.means}
        if not self._is_gathered:
            assert self._saver is not None
            self._saver.save(step=step, model=self.spread.model, optimizer=self.optimizer, state=state, others=means)
            return
        gathered = self.spread.gather(self.optimizer)
        cuts = self.spread.cuts
        others = {
            kind: {name: whole(mean, cuts.get(name)) for name, mean in of_kind.items()}
            for kind, of_kind in means.items()
        }
        if gathered is not None and self._saver is not None:
            model, optimizer = gathered
            self._saver.save(step=step, model=model, optimizer=optimizer, state=state, others=others)

    def restore(self) -> dict[str, Any] | None:
        """Puts the newest checkpoint into this rank's parts; returns its state, None where there is no checkpoint.

        The random states are this rank's own, or new ones where other ranks wrote it.
        """
        torch.manual_seed(self._seed + self.spread.world.data_rank)  # dropout
        found = checkpoint.find(self.directory)
        for path in found.uncommitted if self.spread.world.is_main else ():
            origin = found.newest or "the beginning"
            warnings.warn(f"checkpoint {path} was never finished; going on from {origin}", stacklevel=2)
        if found.newest is None:
            return None
        state = self._load(found.newest)
        if self.average is not None:
            self.average.step = state["step"]
        return state

    def mark(self, step: int, loss: float) -> None:
        """Notes the validation loss of a step: the best checkpoints stay."""
        if self._saver is not None:
            self._saver.mark(step, loss)

    def finish(self) -> None:
        """Waits until the last save is done. Raises: what went wrong with it."""
        if self._saver is not None:
            self._saver.finish()

    def wait(self) -> None:
        """Waits until the save under way is done, whatever comes of it."""
        if self._saver is not None:
            self._saver.wait()

    def _load(self, path: Path) -> dict[str, Any]:
        spread, average = self.spread, self.average
        others = {} if average is None else {"ema": average.means}
        if not self._is_gathered:
            return checkpoint.load(
                path, spread.model, self.optimizer, others=others, group=self._group, seed=self._seed
            )
        assert isinstance(spread.model, Transformer)
        plain = Transformer(spread.model.config)
        optimizer = optimizer_of(plain, self._optim)
        means = {} if average is None else {name: torch.empty_like(p) for name, p in plain.named_parameters()}
        state = checkpoint.load(path, plain, optimizer, others={"ema": means} if means else {})
        spread.take(plain, optimizer, self.optimizer)
        for name, mean in means.items():
            self._take_mean(name, mean)
        reseed(self._seed, state["step"], spread.world.data_rank)
        return state

    def _take_mean(self, name: str, mean: Tensor) -> None:
        assert self.average is not None
        own = self.average.means[name]
        own.copy_(part(mean.to(own.dtype), own, self.spread.cuts.get(name)))
