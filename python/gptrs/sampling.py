"""From logits to a token: the settings of a generation, repetition penalty, distribution, draw, log-probabilities.

Unusual here: every sequence has a random stream of its own, derived from the seed and its place in the batch, and each
new position of it has its own numbers, so what is drawn depends on nothing else: not on its companions, not on when
they stop, not on the device, not on torch's global generator. One thing remains: near the last learned position the
longest sequence bounds how many drafts fit, and a token that is drafted is drawn by other numbers, of the same
distribution. A draw is one uniform number looked up in the cumulative distribution.
"""

import math
import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, SupportsIndex

import torch
from torch import Tensor

if TYPE_CHECKING:
    from gptrs.tokenizer import Tokenizer

_INTEGERS = ("max_new_tokens", "top_k", "logprobs", "prefill_chunk", "n_drafts", "seed")
_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty")
_OPTIONAL = ("top_k", "top_p", "min_p", "logprobs", "prefill_chunk", "seed")
_SEEDS = -(2**63), 2**64 - 1  # what torch's generators take


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """`gptrs.generate.Settings` with every default filled in.

    Raises: ValueError when a setting is out of range or two do not fit together; TypeError for one of another type.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    stop_tokens: Collection[int] = ()
    stop_strings: Sequence[str] = ()
    tokenizer: "Tokenizer | None" = None
    logprobs: int | None = None
    seed: int | None = None
    use_cache: bool = True
    prefill_chunk: int | None = None
    n_drafts: int = 0
    is_compiled: bool = False

    def __post_init__(self) -> None:
        self._check_types()
        self._check_numbers()
        if not all(self.stop_strings):
            raise ValueError(f"stop_strings must be a list of texts that are not empty, got {self.stop_strings!r}")
        if self.stop_strings and self.tokenizer is None:
            raise ValueError("stop_strings need the text of the ids; hint: tokenizer=Tokenizer.from_file(…)")
        for name, is_set in (("n_drafts", self.n_drafts > 0), ("is_compiled", self.is_compiled)):
            if is_set and not self.use_cache:
                raise ValueError(f"{name} needs the cache, got use_cache=False")

    def _check_types(self) -> None:
        """Integers of numpy become Python's, which is all that torch takes everywhere."""
        for name in _INTEGERS:
            if (value := getattr(self, name)) is None and name in _OPTIONAL:
                continue
            if not isinstance(value, SupportsIndex) or isinstance(value, bool):
                raise TypeError(f"{name} must be a whole number, got {value!r}")
            object.__setattr__(self, name, operator.index(value))
        for name in _NUMBERS:
            value = getattr(self, name)
            if not (value is None and name in _OPTIONAL) and (not isinstance(value, Real) or isinstance(value, bool)):
                raise TypeError(f"{name} must be a number, got {value!r}")
        if isinstance(self.stop_strings, str):
            raise ValueError(f"stop_strings must be a list of texts that are not empty, got {self.stop_strings!r}")
        for name, kind, expected in (("stop_tokens", SupportsIndex, "ids"), ("stop_strings", str, "texts")):
            value = getattr(self, name)
            if not isinstance(value, Collection) or not all(isinstance(item, kind) for item in value):
                raise TypeError(f"{name} must be a list of {expected}, got {value!r:.60}")

    def _check_numbers(self) -> None:
        if not 1 <= self.max_new_tokens < 2**31:
            raise ValueError(f"max_new_tokens must be 1 to {2**31 - 1}, got {self.max_new_tokens}")
        if not 0.0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be a number of at least 0, got {self.temperature!r}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k!r}; hint: leave it out to keep every token")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p!r}")
        if self.min_p is not None and not 0.0 <= self.min_p <= 1.0:
            raise ValueError(f"min_p must be from 0 to 1, got {self.min_p!r}")
        if not 0.0 < self.repetition_penalty < math.inf:
            raise ValueError(
                f"repetition_penalty must be a number above 0, got {self.repetition_penalty!r}; hint: 1 changes nothing"
            )
        if self.logprobs is not None and self.logprobs < 0:
            raise ValueError(f"logprobs must be at least 0, got {self.logprobs!r}; hint: 0 is the token's own alone")
        if self.prefill_chunk is not None and self.prefill_chunk < 1:
            raise ValueError(f"prefill_chunk must be at least 1, got {self.prefill_chunk!r}")
        if self.seed is not None and not _SEEDS[0] <= self.seed <= _SEEDS[1]:
            raise ValueError(
                f"seed must be an integer of 64 bits, got {self.seed!r}; hint: leave it out for a fresh one"
            )
        if self.n_drafts < 0:
            raise ValueError(f"n_drafts must be at least 0, got {self.n_drafts!r}")

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0.0

    def scores(self, logits: Tensor, is_seen: Tensor | None) -> Tensor:
        """The logits behind the repetition penalty: (B, V) and booleans (B, V), or None without a penalty → (B, V)."""
        return logits if is_seen is None else penalized(logits, is_seen, self.repetition_penalty)

    def distribution(self, logits: Tensor, is_seen: Tensor | None) -> Tensor:
        """What a token is drawn from when the temperature is above 0: (B, V) → float64 (B, V)."""
        scores = self.scores(logits, is_seen)  # (B, V)
        return probabilities(scores, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p)


def penalized(logits: Tensor, is_seen: Tensor, penalty: float) -> Tensor:
    """Logits of the ids seen before, divided by the penalty where above 0 and multiplied where below; (B, V).

    A penalty above 1 makes them less likely, one below 1 likelier; no logit becomes infinite, however far it is from 1.
    Source: arXiv 1909.05858, section 4.1; below 0, where division would make an id likelier, as transformers does.
    Example: logits (2, -1, 3), the first two seen, penalty 2 give (1, -2, 3).
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))  # (B, V)
    limits = torch.finfo(wide.dtype)
    penalty = min(max(penalty, limits.tiny), limits.max)
    changed = torch.where(wide < 0, wide * penalty, wide / penalty).clamp(limits.min, limits.max)  # (B, V)
    return torch.where(is_seen, changed, wide)


def probabilities(
    logits: Tensor,
    *,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Tensor:
    """The distribution to draw from: temperature, then top-k, then top-p of what is left; (B, V) → float64 (B, V).

    With min_p no token stays that is less likely than so many times the likeliest. Source: arXiv 2407.01082, section 3.
    Equal logits rank by id, the lower first. Temperature is above 0.
    Examples: probabilities (0.5, 0.3, 0.2) with top_p=0.6 or min_p=0.5 become (0.625, 0.375, 0).
    """
    wide = logits.double()
    scaled = (wide - wide.amax(dim=-1, keepdim=True)) / temperature  # (B, V), at most 0: no overflow however cold
    if top_k is not None and top_k < scaled.shape[-1]:
        scaled = scaled.masked_fill(~_is_among_largest(scaled, top_k), -math.inf)
    kept = scaled.softmax(dim=-1)  # (B, V)
    if top_p is not None and top_p < 1.0:
        ranked, ids = kept.sort(dim=-1, descending=True, stable=True)  # (B, V) each
        before = _running_sums(ranked) - ranked  # (B, V), the mass of all likelier tokens
        kept = torch.zeros_like(kept).scatter(-1, ids, ranked.masked_fill(before >= top_p, 0.0))
        kept = kept / kept.sum(dim=-1, keepdim=True)
    if min_p:
        kept = kept.masked_fill(kept < min_p * kept.amax(dim=-1, keepdim=True), 0.0)
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

    Never an id of probability 0. The rows need not sum to 1.
    Example: (0.5, 0.3, 0.2) gives 0 below 0.5, 1 below 0.8, else 2.
    """
    cumulative = _running_sums(distribution)  # (B, V)
    target = uniform.unsqueeze(-1) * cumulative[:, -1:]  # (B, 1): rounding may leave the sum beside 1
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)  # (B,)


def _running_sums(x: Tensor) -> Tensor:
    """Of each row, (B, V); on the CPU where a run wants the same bits twice: torch 2.11 has no such sums on CUDA."""
    if x.is_cuda and torch.are_deterministic_algorithms_enabled():
        return x.cpu().cumsum(dim=-1).to(x.device)
    return x.cumsum(dim=-1)


def log_probabilities(logits: Tensor, ids: Tensor, n_likeliest: int) -> tuple[Tensor, Tensor, Tensor]:
    """Natural logarithms of the model's own probabilities: no temperature, penalty, top-k or top-p is in them.

    Args: logits: (B, T, V); ids: (B, T), the tokens asked for.
    Returns: those of the ids, (B, T); those of the likeliest tokens, (B, T, n), falling, and their ids, (B, T, n).
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    table = logits.to(wide).log_softmax(dim=-1)  # (B, T, V)
    likeliest = table.topk(min(n_likeliest, table.shape[-1]), dim=-1)
    return table.gather(-1, ids.unsqueeze(-1)).squeeze(-1), likeliest.values, likeliest.indices


def uniforms(n_rows: int, n_draws: int, seed: int | None) -> tuple[Tensor, Tensor]:
    """Uniform numbers in [0, 1) for each new position of each row, float64; row i depends on the seed and i alone.

    Returns: (n_rows, n_draws), which draw the tokens; (n_rows, n_draws, 2), which draw and judge drafts.
    """
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    seeds = torch.randint(2**63 - 1, (n_rows,), generator=generator).tolist()
    tokens = [_stream(row_seed, (n_draws,)) for row_seed in seeds]
    drafts = [_stream(row_seed ^ 1, (n_draws, 2)) for row_seed in seeds]
    return torch.stack(tokens), torch.stack(drafts)


def _stream(seed: int, shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
