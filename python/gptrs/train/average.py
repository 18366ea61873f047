"""The running mean of a model's weights: what their noise in the last updates hides.

weights ─after each update─▶ mean ← mean + (1 - decay)·(weights - mean) ─▶ ema.safetensors, ema_val_loss
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gptrs.model.ranks import local


class Average:
    """The mean in float32 or wider beside the model, on its device and with its sharding.

    Attributes: means: by name, of every parameter, also of those that no gradient moves; step: updates in them.
    """

    def __init__(self, model: nn.Module, *, decay: float, is_corrected: bool = True) -> None:
        """Args: decay: of the mean in each update, 0.999: about the last thousand; is_corrected: weigh as though the
        mean had begun with the first update, without the random weights before it: the formula is Adam's for its
        moments, arXiv 1412.6980, section 3."""
        self.decay = decay
        self.is_corrected = is_corrected
        self.step = 0
        self.means = {name: _wide(p).clone() for name, p in model.named_parameters()}
        self._parameters = dict(model.named_parameters())

    @torch.no_grad()
    def update(self) -> None:
        """Takes the weights after one more update into the mean."""
        self.step += 1
        share = 1 - self.decay
        if self.is_corrected:
            share /= 1 - self.decay**self.step
        weights = [local(_wide(p)) for p in self._parameters.values()]  # torch 2.11 has no rule for DTensors here
        torch._foreach_lerp_([local(mean) for mean in self.means.values()], weights, share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Puts the mean into the model, rounded to its type, and afterwards the same weights as before."""
        own = {name: p.detach().clone() for name, p in self._parameters.items()}
        try:
            self._put(self.means)
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        for name, p in self._parameters.items():
            p.copy_(tensors[name])


def _wide(p: Tensor) -> Tensor:
    return p.detach().to(torch.promote_types(p.dtype, torch.float32))
