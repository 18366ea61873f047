"""The running mean of a model's weights: what their noise in the last updates hides.

weights ─after each update─▶ mean ← mean + (1 - decay)·(weights - mean) ─▶ ema.safetensors, ema_val_loss

Unusual here: whether an update was made is a tensor (see `guard`), so the number of those that were is one too, and no
update waits for the device to tell.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gptrs.model.ranks import local


class Average:
    """The mean in float32 or wider beside the model, on its device and with its sharding.

    Attributes: means: by name, of every parameter, also of those that no gradient moves.
    """

    def __init__(self, model: nn.Module, *, decay: float, is_corrected: bool = True) -> None:
        """Args: decay: of the mean in each update, 0.999: about the last thousand; is_corrected: weigh as though the
        mean had begun with the first update, without the random weights before it: the formula is Adam's for its
        moments, arXiv 1412.6980, section 3."""
        self.decay = decay
        self.is_corrected = is_corrected
        self.means = {name: _wide(p).clone() for name, p in model.named_parameters()}
        self._parameters = dict(model.named_parameters())
        self._own: dict[str, Tensor] | None = None  # the model's weights while the mean is in their place
        device = next(model.parameters()).device
        self._n_updates = torch.zeros((), dtype=torch.float64, device=device)

    @property
    def n_updates(self) -> int:
        """Updates in the mean; waits for the device."""
        return int(self._n_updates)

    @n_updates.setter
    def n_updates(self, n: int) -> None:
        self._n_updates.fill_(n)

    def begin(self) -> None:
        """Begins anew with the weights as they are: for a run that had no mean until here."""
        self.means = {name: _wide(p).clone() for name, p in self._parameters.items()}
        self.n_updates = 0

    @torch.no_grad()
    def update(self, is_left_out: Tensor | None = None) -> None:
        """Takes the weights after one more update into the mean.

        Args: is_left_out: 1 where that update was not made: the mean then stays as it is, to the bit.
        """
        is_made = torch.ones_like(self._n_updates) if is_left_out is None else 1 - is_left_out.to(self._n_updates)
        self._n_updates += is_made
        share = (1 - self.decay) * is_made
        if self.is_corrected:
            share /= (1 - self.decay**self._n_updates).clamp(min=1 - self.decay)  # before the first it is 0
        means = [local(mean) for mean in self.means.values()]  # torch 2.11 has no rule for DTensors here
        weights = [local(_wide(p)) for p in self._parameters.values()]
        torch._foreach_lerp_(means, weights, [share.to(mean.dtype) for mean in means])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Puts the mean into the model, rounded to its type, and afterwards the same weights as before."""
        self._own = {name: p.detach().clone() for name, p in self._parameters.items()}
        try:
            self._put(self.means)
            yield
        finally:
            self.put_back()

    def put_back(self) -> None:
        """Puts the model's own weights back where the mean is in their place.

        A signal may end `applied` anywhere, in the middle of this too: who saves weights calls it first.
        """
        if self._own is not None:
            self._put(self._own)
            self._own = None

    @torch.no_grad()
    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        for name, p in self._parameters.items():
            p.copy_(tensors[name])


def _wide(p: Tensor) -> Tensor:
    return p.detach().to(torch.promote_types(p.dtype, torch.float32))
