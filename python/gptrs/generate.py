"""Tokens after a prompt: greedy or sampled, one sequence or many of different lengths, with or without the cache.

    prompts ─pad right─▶ hidden ─last real position─▶ logits ─▶ probabilities ─▶ draw ─▶ next ids ─┐
                           ▲                                                                       │
                           └───────────────────────── one position each ───────────────────────────┘

Unusual here: every sequence has a random stream of its own, derived from the seed and its place in the batch, so what
it draws depends on nothing else: not on its companions, not on when they stop, not on the device, not on torch's
global generator. A draw is one uniform number looked up in the cumulative distribution.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Required, TypedDict, Unpack

import torch
from torch import Tensor, nn

from gptrs.model import Transformer, new_cache


class Settings(TypedDict, total=False):
    """How to go on from a prompt. All but `max_new_tokens` may be left out.

    temperature: 0 always takes the likeliest token; otherwise the logits are divided by it. Default 1.
    top_k: keep this many of the likeliest tokens. top_p: then keep the smallest set of the likeliest tokens whose
        probability reaches this. Default None for both: keep every token.
    stop_tokens: ids that end a sequence. Default none.
    seed: the same seed draws the same tokens; None, the default, draws fresh ones.
    use_cache: False recomputes every position for every token, to check the cache against. Default True.
    """

    max_new_tokens: Required[int]
    temperature: float
    top_k: int | None
    top_p: float | None
    stop_tokens: Collection[int]
    seed: int | None
    use_cache: bool


def generate(model: Transformer, prompts: Sequence[Sequence[int]], **settings: Unpack[Settings]) -> list[list[int]]:
    """The new ids of each prompt, without the prompt; a stop token that ended a sequence is its last id.

    Raises: ValueError, before any work, for an empty prompt, an id outside the vocabulary, a setting out of range, or
        a prompt that with its new tokens would not fit the learned positions.
    """
    sampling = _checked(model, prompts, settings)
    out: list[list[int]] = [[] for _ in prompts]
    stop = frozenset(sampling.stop_tokens)
    for ids in _steps(model, prompts, sampling):
        for row, token in zip(out, ids, strict=True):
            if not row or row[-1] not in stop:
                row.append(token)
        if all(row[-1] in stop for row in out):
            break
    return out


def stream(model: Transformer, prompt: Sequence[int], **settings: Unpack[Settings]) -> Iterator[int]:
    """Yields the ids that `generate` returns for this one prompt, each as soon as it is known.

    The arguments are checked by the call itself, not at the first id. Between two ids the model is in the caller's
    mode, and gradients are the caller's matter.
    """
    sampling = _checked(model, [prompt], settings)
    steps = _steps(model, [prompt], sampling)
    return _until_stop((token for (token,) in steps), frozenset(sampling.stop_tokens))


def probabilities(logits: Tensor, *, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """The distribution to draw from: temperature, then top-k, then top-p of what is left; (B, V) → float64 (B, V).

    Equal logits rank by id, the lower first. Temperature is above 0.
    Example: probabilities (0.5, 0.3, 0.2) with top_p=0.6 become (0.625, 0.375, 0).
    """
    wide = logits.double()
    scaled = (wide - wide.amax(dim=-1, keepdim=True)) / temperature  # (B, V), at most 0: no overflow however cold
    if top_k is not None and top_k < scaled.shape[-1]:
        scaled = scaled.masked_fill(~_is_among_largest(scaled, top_k), -math.inf)
    kept = scaled.softmax(dim=-1)  # (B, V)
    if top_p is not None and top_p < 1.0:
        ranked, ids = kept.sort(dim=-1, descending=True, stable=True)  # (B, V) each
        before = ranked.cumsum(dim=-1) - ranked  # (B, V), the mass of all likelier tokens
        kept = torch.zeros_like(kept).scatter(-1, ids, ranked.masked_fill(before >= top_p, 0.0))
        kept = kept / kept.sum(dim=-1, keepdim=True)
    return kept


def _is_among_largest(x: Tensor, k: int) -> Tensor:
    """Which k entries of each row are the largest; of equals at the edge, those of lower id: booleans (B, V)."""
    smallest = x.topk(k, dim=-1).values[:, -1:]  # (B, 1)
    is_larger, is_equal = x > smallest, x == smallest  # (B, V) each
    n_places = k - is_larger.sum(dim=-1, keepdim=True)  # (B, 1), left for the equals
    return is_larger | (is_equal & (is_equal.cumsum(dim=-1) <= n_places))


def draw(distribution: Tensor, uniform: Tensor) -> Tensor:
    """The first id at which the cumulative probability exceeds `uniform`; (B, V) and (B,) in [0, 1) → (B,).

    Never an id of probability 0. Example: (0.5, 0.3, 0.2) gives 0 below 0.5, 1 below 0.8, else 2.
    """
    cumulative = distribution.cumsum(dim=-1)  # (B, V)
    target = uniform.unsqueeze(-1) * cumulative[:, -1:]  # (B, 1): rounding may leave the sum beside 1
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)  # (B,)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sampling:
    """`Settings` with every default filled in."""

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    stop_tokens: Collection[int] = ()
    seed: int | None = None
    use_cache: bool = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be a number of at least 0, got {self.temperature!r}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k!r}; hint: leave it out to keep every token")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p!r}")

    def next_ids(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """One id for each row of logits: (B, V) and (B,) → (B,)."""
        if not bool(logits.amax(dim=-1).isfinite().all()):
            raise ValueError("expected finite logits, got nan or infinity; hint: the model's training has diverged")
        if self.temperature == 0.0:
            return logits.argmax(dim=-1)  # (B,)
        distribution = probabilities(logits, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)  # (B, V)
        return draw(distribution, uniform)  # (B,)


def _checked(model: Transformer, prompts: Sequence[Sequence[int]], settings: Settings) -> _Sampling:
    """The settings with their defaults, when they and the prompts fit the model."""
    sampling, config = _Sampling(**settings), model.config
    max_new_tokens = sampling.max_new_tokens
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    for row, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompt {row} has no tokens; hint: start from the end-of-text token")
        if min(prompt) < 0 or max(prompt) >= config.vocab_size:
            got = min(prompt) if min(prompt) < 0 else max(prompt)
            raise ValueError(f"prompt {row}: expected ids below vocab_size ({config.vocab_size}), got {got}")
        limit = config.position_limit
        if limit is not None and len(prompt) + max_new_tokens > limit:
            raise ValueError(
                f"prompt {row} of {len(prompt)} tokens and {max_new_tokens} new ones exceed the {limit} learned "
                f"positions; hint: shorten the prompt or lower max_new_tokens by {len(prompt) + max_new_tokens - limit}"
            )
    return sampling


def _steps(model: Transformer, prompts: Sequence[Sequence[int]], sampling: _Sampling) -> Iterator[list[int]]:
    """Yields the next id of every prompt, max_new_tokens times; the caller decides which sequences have ended."""
    if not prompts:
        return
    device, dtype = model.embed.token.weight.device, model.embed.token.weight.dtype
    lengths = [len(prompt) for prompt in prompts]
    longest, max_new_tokens = max(lengths), sampling.max_new_tokens
    tokens = _padded(prompts, longest + max_new_tokens).to(device)  # (B, longest + max_new_tokens)
    cache = None
    if sampling.use_cache:
        cache = new_cache(model.config, len(prompts), longest + max_new_tokens, device=device, dtype=dtype)
    uniforms = _uniforms(len(prompts), max_new_tokens, sampling.seed).to(device)  # (B, max_new_tokens)
    rows = torch.arange(len(prompts), device=device)  # (B,)
    ends = torch.tensor(lengths, device=device)  # (B,), where each sequence's next token goes
    modules = list(model.modules())
    for step in range(max_new_tokens):
        with torch.inference_mode(), _evaluating(modules):
            if cache is None or step == 0:
                hidden = model.hidden(tokens[:, : longest + step], cache=cache)[rows, ends - 1]  # (B, C)
            else:
                hidden = model.hidden(tokens[rows, ends - 1].unsqueeze(1), cache=cache).squeeze(1)  # (B, C)
            if cache is not None and step == 0:
                cache.crop(lengths)  # forget the padding
            ids = sampling.next_ids(model.logits(hidden), uniforms[:, step])  # (B,)
            tokens[rows, ends] = ids
            ends = ends + 1
        yield ids.tolist()


def _padded(prompts: Sequence[Sequence[int]], length: int) -> Tensor:
    """The prompts, filled up with id 0 on the right: (B, length). Causality keeps the filling out of sight."""
    tokens = torch.zeros(len(prompts), length, dtype=torch.int64)  # (B, length)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor(prompt)
    return tokens


def _uniforms(n_rows: int, n_draws: int, seed: int | None) -> Tensor:
    """Uniform numbers in [0, 1), float64 (n_rows, n_draws); row i depends on the seed and i alone."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    seeds = torch.randint(2**63 - 1, (n_rows,), generator=generator).tolist()
    streams = (torch.Generator().manual_seed(row_seed) for row_seed in seeds)
    return torch.stack([torch.rand(n_draws, generator=stream, dtype=torch.float64) for stream in streams])


def _until_stop(ids: Iterator[int], stop: frozenset[int]) -> Iterator[int]:
    for token in ids:
        yield token
        if token in stop:
            return


@contextmanager
def _evaluating(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Dropout off inside; afterwards each module is in the mode it was in."""
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
