"""A run's checkpoints, whatever its ranks share: saved beside the training, restored by any number of ranks.

Unusual here: the parts of "tensor" ranks stand in an order of their own (see `cuts`), of which those who write and read
are told, so that a checkpoint has every tensor in the plain model's order.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from gptrs.train import checkpoint, manifest
from gptrs.train.average import Average
from gptrs.train.config import TrainSettings
from gptrs.train.saver import Saver
from gptrs.train.spread import Spread

if TYPE_CHECKING:
    from gptrs.train.shards import Order


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
        seed: int,
        on_failure: Callable[[int, OSError], None],
    ) -> None:
        """Every rank makes one.

        Args: seed: of the run; on_failure: what a step that could not be saved is told to, on rank 0.
        Raises: OSError where nothing can be saved.
        """
        self.directory = directory
        self.spread, self.optimizer, self.average = spread, optimizer, average
        self._seed = seed
        self._group = _group(spread)
        self._orders = _orders(spread)
        self.saver = Saver(
            directory,
            keep=train.keep_checkpoints,
            keep_best=train.keep_best,
            is_async=train.checkpoint_async,
            group=self._group,
            orders=self._orders,
            on_failure=on_failure if spread.world.is_main else lambda step, error: None,  # told once
        )

    def save(self, step: int, state: Mapping[str, Any], *, logs: Sequence[Path] = ()) -> None:
        """Begins the checkpoint of a step. Every rank calls it; rank 0's state counts.

        Args: logs: files of which `state` knows the lengths.
        """
        if self.average is not None:
            self.average.put_back()  # a request to stop may have ended an evaluation of the mean
        model, others = self.spread.model, self._others()
        self.saver.save(step=step, model=model, optimizer=self.optimizer, state=state, others=others, logs=logs)

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
        has_mean = bool(manifest.tensor_files(found.newest, "ema"))  # or the run goes on with train.ema from here
        state = checkpoint.load(
            found.newest,
            self.spread.model,
            self.optimizer,
            others=self._others() if has_mean else {},
            group=self._group,
            orders=self._orders,
            seed=self._seed,
        )
        if self.average is not None and not has_mean:
            self.average.begin()
        elif self.average is not None:
            self.average.n_updates = state.get("n_averaged", state["step"])
        return state

    def _others(self) -> dict[str, dict[str, torch.Tensor]]:
        return {} if self.average is None else {"ema": self.average.means}


def _group(spread: Spread) -> dist.ProcessGroup | None:
    """A group of all ranks that only those who write and read use, beside the training."""
    if spread.world.size == 1:
        return None
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup), "every rank is in it"
    return group


def _orders(spread: Spread) -> "dict[str, Order]":
    if not spread.cuts:
        return {}
    from gptrs.train.shards import Order

    n, device = spread.world.sizes.tensor, torch.device("cpu")
    return {name: Order(cut.axis, cut.order(n, device)) for name, cut in spread.cuts.items() if cut.has_order}
