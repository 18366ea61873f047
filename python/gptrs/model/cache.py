"""States of the positions seen so far, so that each new token costs one position.

A sequence's position p lives in slot p of its row. Prompts of different lengths therefore need no left padding: they
are padded on the right, the padding's keys lie in slots after the last real position, no real query may look there
(slot ≤ position), and the tokens generated later overwrite them. `crop` forgets the padding:

    slot        0  1  2  3  4            after crop((2, 4)) and one step of T = 1
    sequence 0  a  b  ·  ·  -            a  b  c  ·  -
    sequence 1  d  e  f  g  -            d  e  f  g  h

A pass reads the slots up to the longest sequence, so its shapes grow from step to step. After `fix_shapes` they do not,
and a compiled step is compiled once: where each sequence ends is a tensor, every slot is read, and the mask hides what
is not known.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from gptrs.model.config import ModelConfig


class Cache(ABC):
    """Preallocated states of each layer, (B, heads, S, width); memory is taken once and never moves.

    One forward pass of T new positions is: `check(T)`, `positions(T)`, `mask(T)`, `append` in each layer, `advance(T)`.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_len: int,
        *,
        n_layers: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Args: n_layers: 0 for as many as the model has."""
        limit = None if n_layers else config.position_limit  # blocks of further tokens add no positions
        if limit is not None and max_len > limit:
            raise ValueError(
                f"max_len ({max_len}) must not exceed the {limit} learned positions; hint: use max_len={limit}"
            )
        self.max_len = max_len
        self.lengths = (0,) * batch_size  # positions known of each sequence
        self._ends: Tensor | None = None  # the same on the device, (B,), once shapes are fixed

        def empty(heads: int, width: int) -> Tensor:
            # Zeros, not empty: a masked slot has weight 0, and 0 · nan would be nan.
            return torch.zeros(batch_size, heads, max_len, width, device=device, dtype=dtype)

        self._layers = [[empty(*shape) for shape in self.shapes(config)] for _ in range(n_layers or config.n_layers)]
        self._device = self._layers[0][0].device

    @staticmethod
    @abstractmethod
    def shapes(config: ModelConfig) -> Sequence[tuple[int, int]]:
        """Heads and width of each tensor that a layer keeps."""

    @property
    def n_bytes(self) -> int:
        """Bytes of the storage, all layers together."""
        return sum(tensor.nbytes for layer in self._layers for tensor in layer)

    @property
    def is_uniform(self) -> bool:
        """Whether all sequences are equally long, so that no mask is needed to tell them apart."""
        return min(self.lengths) == max(self.lengths)

    def check(self, T: int) -> None:
        """Raises: ValueError when T more positions do not fit."""
        needed = max(self.lengths) + T
        if needed > self.max_len:
            raise ValueError(f"the cache holds {self.max_len} positions, {needed} needed; hint: use max_len={needed}")

    def fix_shapes(self) -> None:
        """From here on the tensors of a pass have one shape for each T, and no Python number in it changes.

        A compiled step calls what stands between `check` and `advance`; these two stay outside.
        """
        self._ends = torch.tensor(self.lengths, device=self._device)

    def positions(self, T: int) -> Tensor:
        """The positions of the next T tokens: (T,) when all sequences are equally long, else (B, T)."""
        if self._ends is not None:
            return self._ends[:, None] + torch.arange(T, device=self._device)  # (B, T)
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
        if self._ends is None and self.is_uniform and (T == 1 or self.lengths[0] == 0):
            return None
        slots = torch.arange(self._n_slots(T), device=self._device)  # (S,)
        mask = slots <= self.positions(T).unsqueeze(-1)  # (T, S) or (B, T, S)
        return mask if mask.ndim == 2 else mask.unsqueeze(1)  # (T, S) or (B, 1, T, S)

    def store(self, layer: int, new: Sequence[Tensor]) -> list[Tensor]:
        """Stores (B, heads, T, width) behind each sequence, one for each shape; returns what a pass reads.

        The lengths grow in `advance`, when every layer has stored its own.
        """
        B, _, T, _ = new[0].shape
        for cached, states in zip(self._layers[layer], new, strict=True):
            if self._ends is None and self.is_uniform:
                cached[:, :, self.lengths[0] : self.lengths[0] + T] = states
            else:
                rows = torch.arange(B, device=self._device)[:, None]  # (B, 1)
                cached[rows, :, self.positions(T)] = states.transpose(1, 2).to(cached.dtype)  # (B, T, heads, width)
        return self.seen(layer, T)

    def seen(self, layer: int, n_new: int = 0) -> list[Tensor]:
        """What a layer keeps up to the longest sequence plus `n_new`, or with fixed shapes all of it, without a copy:
        (B, heads, S, width) each."""
        S = self._n_slots(n_new)
        return [cached[:, :, :S] for cached in self._layers[layer]]

    def _n_slots(self, n_new: int) -> int:
        """S: the slots that a pass reads."""
        return self.max_len if self._ends is not None else max(self.lengths) + n_new

    def advance(self, T: int) -> None:
        """Counts T positions as known in every sequence."""
        self.lengths = tuple(length + T for length in self.lengths)
        if self._ends is not None:
            self._ends.add_(T)

    def crop(self, lengths: int | Sequence[int]) -> None:
        """Forgets what lies behind the given length, one for all sequences or one for each.

        Raises: ValueError for a number of lengths other than that of the sequences, or one that is not yet reached.
        """
        wanted = (lengths,) * len(self.lengths) if isinstance(lengths, int) else tuple(lengths)
        if len(wanted) != len(self.lengths):
            raise ValueError(f"expected {len(self.lengths)} lengths, one for each sequence, got {len(wanted)}")
        for row, (new, old) in enumerate(zip(wanted, self.lengths, strict=True)):
            if not 0 <= new <= old:
                raise ValueError(f"cannot crop sequence {row} to {new} positions, it has {old}")
        self.lengths = wanted
        if self._ends is not None:
            self._ends.copy_(torch.tensor(wanted))


class KVCache(Cache):
    """Keys and values of every kv head: 2·K·D numbers for each position and layer."""

    @staticmethod
    def shapes(config: ModelConfig) -> Sequence[tuple[int, int]]:
        return (config.kv_heads, config.head_dim), (config.kv_heads, config.value_dim)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores keys and values (B, K, T, D) behind each sequence; returns all in view, (B, K, S, D) each."""
        keys, values = self.store(layer, (k, v))
        return keys, values

    def view(self, layer: int, n_new: int = 0) -> tuple[Tensor, Tensor]:
        """Keys and values up to the longest sequence plus `n_new`, without a copy: (B, K, S, D) each."""
        keys, values = self.seen(layer, n_new)
        return keys, values


class LatentCache(Cache):
    """The normalised latent and the one rotated key of each position: R + qk_rope_head_dim numbers for each layer.

    They stand side by side, as the key of absorbed attention; its value is their front.
    Source: arXiv 2405.04434, section 2.1.2.
    """

    @staticmethod
    def shapes(config: ModelConfig) -> Sequence[tuple[int, int]]:
        return ((1, config.kv_lora_rank + config.qk_rope_head_dim),)

    def append(self, layer: int, latent: Tensor) -> Tensor:
        """Stores (B, 1, T, R + qk_rope_head_dim) behind each sequence; returns all in view, (B, 1, S, …)."""
        (seen,) = self.store(layer, (latent,))
        return seen

    def view(self, layer: int, n_new: int = 0) -> Tensor:
        """Latents up to the longest sequence plus `n_new`, without a copy: (B, 1, S, R + qk_rope_head_dim)."""
        (seen,) = self.seen(layer, n_new)
        return seen


def new_cache(
    config: ModelConfig,
    batch_size: int,
    max_len: int,
    *,
    n_layers: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> KVCache | LatentCache:
    """The empty cache of the model's kind of attention.

    Args:
        batch_size: B, sequences; max_len: positions that each may come to.
        n_layers: layers, where they are not the model's own; 0: as many as the model has.
        dtype: of what is kept, as the model computes in.
    Raises: ValueError when max_len exceeds the learned positions.
    """
    kind = LatentCache if config.is_latent else KVCache
    return kind(config, batch_size, max_len, n_layers=n_layers, device=device, dtype=dtype)
