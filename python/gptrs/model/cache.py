"""Keys and values of the positions seen so far, so that each new token costs one position.

A sequence's position p lives in slot p of its row. Prompts of different lengths therefore need no left padding: they
are padded on the right, the padding's keys lie in slots after the last real position, no real query may look there
(slot ≤ position), and the tokens generated later overwrite them. `crop` forgets the padding:

    slot        0  1  2  3  4            after crop((2, 4)) and one step of T = 1
    sequence 0  a  b  ·  ·  -            a  b  c  ·  -
    sequence 1  d  e  f  g  -            d  e  f  g  h
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gptrs.model.config import ModelConfig


class KVCache:
    """Preallocated keys and values, (B, H, S, D) for each layer; memory is taken once and never moves.

    One forward pass of T new positions is: `check(T)`, `positions(T)`, `mask(T)`, `append` in each layer, `advance(T)`.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_len: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        limit = config.position_limit
        if limit is not None and max_len > limit:
            raise ValueError(
                f"max_len ({max_len}) must not exceed the {limit} learned positions; hint: use max_len={limit}"
            )
        self.max_len = max_len
        self.lengths = (0,) * batch_size  # positions known of each sequence
        shape = (batch_size, config.n_heads, max_len, config.head_dim)
        # Zeros, not empty: a masked slot has weight 0, and 0 · nan would be nan.
        self._keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layers)]
        self._values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layers)]
        self._device = self._keys[0].device

    @property
    def n_bytes(self) -> int:
        """Bytes of the storage, all layers together."""
        return sum(tensor.nbytes for tensor in self._keys + self._values)

    @property
    def is_uniform(self) -> bool:
        """Whether all sequences are equally long, so that no mask is needed to tell them apart."""
        return min(self.lengths) == max(self.lengths)

    def check(self, T: int) -> None:
        """Raises: ValueError when T more positions do not fit."""
        needed = max(self.lengths) + T
        if needed > self.max_len:
            raise ValueError(f"the cache holds {self.max_len} positions, {needed} needed; hint: use max_len={needed}")

    def positions(self, T: int) -> Tensor:
        """The positions of the next T tokens: (T,) when all sequences are equally long, else (B, T)."""
        if self.is_uniform:
            start = self.lengths[0]
            return torch.arange(start, start + T, device=self._device)  # (T,)
        starts = torch.tensor(self.lengths, device=self._device)
        return starts[:, None] + torch.arange(T, device=self._device)  # (B, T)

    def mask(self, T: int) -> Tensor | None:
        """Which slots each of the next T tokens may see, as booleans that broadcast to (B, H, T, S).

        None stands for the two cases that need no mask: T tokens at the very beginning, where plain causal order
        holds, and a single token that sees every slot in view.
        """
        if self.is_uniform and (T == 1 or self.lengths[0] == 0):
            return None
        slots = torch.arange(max(self.lengths) + T, device=self._device)  # (S,)
        mask = slots <= self.positions(T).unsqueeze(-1)  # (T, S) or (B, T, S)
        return mask if mask.ndim == 2 else mask.unsqueeze(1)  # (T, S) or (B, 1, T, S)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores keys and values (B, H, T, D) behind each sequence; returns all in view, (B, H, S, D) each.

        The lengths grow in `advance`, when every layer has stored its own.
        """
        B, _, T, _ = k.shape
        for cached, new in ((self._keys[layer], k), (self._values[layer], v)):
            if self.is_uniform:
                cached[:, :, self.lengths[0] : self.lengths[0] + T] = new
            else:
                rows = torch.arange(B, device=self._device)[:, None]  # (B, 1)
                cached[rows, :, self.positions(T)] = new.transpose(1, 2)  # (B, T, H, D)
        return self.view(layer, T)

    def view(self, layer: int, n_new: int = 0) -> tuple[Tensor, Tensor]:
        """Keys and values up to the longest sequence plus `n_new`, without a copy: (B, H, S, D) each."""
        S = max(self.lengths) + n_new
        return self._keys[layer][:, :, :S], self._values[layer][:, :, :S]

    def advance(self, T: int) -> None:
        """Counts T positions as known in every sequence."""
        self.lengths = tuple(length + T for length in self.lengths)

    def crop(self, lengths: int | Sequence[int]) -> None:
        """Forgets what lies behind the given length, one for all sequences or one for each."""
        wanted = (lengths,) * len(self.lengths) if isinstance(lengths, int) else tuple(lengths)
        if len(wanted) != len(self.lengths):
            raise ValueError(f"expected {len(self.lengths)} lengths, one for each sequence, got {len(wanted)}")
        for row, (new, old) in enumerate(zip(wanted, self.lengths, strict=True)):
            if not 0 <= new <= old:
                raise ValueError(f"cannot crop sequence {row} to {new} positions, it has {old}")
        self.lengths = wanted
