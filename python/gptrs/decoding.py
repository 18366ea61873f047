"""The passes of a generation: prompts in chunks, then one pass for each new token, or for some of them.

prompts ─pad right, chunk by chunk─▶ cache, last states ─┐
                                                         ├─▶ logits ─▶ decide ─▶ new tokens ─┐
     ┌─▶ last token and drafts ─▶ pass of 1 + drafts ────┘                                   │
     └───────────────────────────── further-token modules ◀──────────────────────────────────┘
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache as remembered
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gptrs.model import KVCache, LatentCache, Transformer, new_cache
from gptrs.sampling import Sampling, log_probabilities, uniforms
from gptrs.speculate import Drafter, decide

_LEAST_SLOTS = 128  # of a compiled step's cache, whose size is a power of two: few sizes, few compilations


class Decided(NamedTuple):
    """What one pass decided of one sequence."""

    ids: list[int]
    logprobs: list[float]  # of each id, when asked for
    likeliest: list[list[tuple[int, float]]]  # for each id, the likeliest ones there and their log-probabilities
    n_drafted: int
    n_accepted: int


class Decoder:
    """Some prompts under way.

    Attributes: lengths: tokens known of each sequence; goals: how many it shall have.
    """

    def __init__(self, model: Transformer, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
        weight, n_rows = model.embed.token.weight, len(prompts)
        device = weight.device
        self.model, self.sampling = model, sampling
        self.prompt_lengths = [len(prompt) for prompt in prompts]
        self.lengths = list(self.prompt_lengths)
        self.goals = [length + sampling.max_new_tokens for length in self.lengths]
        self._max_len = self._slots(max(self.goals) + sampling.n_drafts)
        self._tokens = _padded(prompts, self._max_len + 2 * sampling.n_drafts + 1).to(device)
        self._cache: KVCache | LatentCache | None = None
        if sampling.use_cache:
            self._cache = new_cache(model.config, n_rows, self._max_len, device=device, dtype=weight.dtype)
        self._drafter = Drafter(model, sampling, n_rows, self._max_len) if sampling.n_drafts else None
        self._rows = torch.arange(n_rows, device=device)[:, None]  # (B, 1)
        self._numbers = [drawn.to(device) for drawn in uniforms(n_rows, sampling.max_new_tokens, sampling.seed)]
        self._is_seen: Tensor | None = None
        if sampling.repetition_penalty != 1.0:
            self._is_seen = _seen(prompts, model.config.vocab_size).to(device)
        self._modules = list(model.modules())

    def rounds(self) -> Iterator[list[Decided]]:
        """Yields what each pass decides of every sequence, until all have reached their goals.

        Whether a sequence has ended before is the caller's matter.
        """
        with torch.inference_mode(), _evaluating(self._modules):
            decided = self._decided(self._prefill(), 0, [])
        yield decided
        while any(length < goal for length, goal in zip(self.lengths, self.goals, strict=True)):
            with torch.inference_mode(), _evaluating(self._modules):
                decided = self._round()
            yield decided

    def _prefill(self) -> Tensor:
        """Takes the prompts; the state of the last position of each, (B, 1, C)."""
        longest, n_last = max(self.lengths), max(1, self._drafter.n_modules if self._drafter else 0)
        ends = torch.tensor(self.lengths, device=self._tokens.device)[:, None]  # (B, 1)
        places = ends - n_last + torch.arange(n_last, device=ends.device)  # (B, n_last), below 0 where there are fewer
        last = torch.zeros((), device=ends.device, dtype=self.model.embed.token.weight.dtype)
        chunk = self.sampling.prefill_chunk if self._cache is not None else None
        for start in range(0, longest, chunk or longest):
            states = self.model.hidden(self._tokens[:, start : min(start + (chunk or longest), longest)],
                                       cache=self._cache)  # (B, T, C)  # fmt: skip
            if self._drafter is not None:
                self._drafter.read(states, self._tokens, start)
            is_here = (places >= start) & (places < start + states.shape[1])  # (B, n_last)
            found = states[self._rows, (places - start).clamp(0, states.shape[1] - 1)]  # (B, n_last, C)
            last = torch.where(is_here.unsqueeze(-1), found, last)
        if self._cache is not None:
            self._cache.crop(self.lengths)  # forget the padding
            if self.sampling.is_compiled:
                self._cache.fix_shapes()
        if self._drafter is not None:
            self._drafter.end_prompts(self.lengths, last)
        return last[:, -1:]

    def _round(self) -> list[Decided]:
        """One pass over the last token of each sequence and the drafts behind it."""
        starts = [length - 1 for length in self.lengths]
        if self._cache is None:
            states = self.model.hidden(self._tokens[:, : max(self.lengths)])  # (B, max(lengths), C)
            return self._decided(states[self._rows, self._behind(starts, 1)], 0, [])
        n_drafts, guesses = self._n_drafts(), []
        if self._drafter is not None and n_drafts:
            numbers = self._numbers[1][self._rows, self._turn(n_drafts), 0]  # (B, n_drafts)
            guesses = self._drafter.draft(self._tokens, starts, n_drafts, numbers, self._is_seen)
        states = self._pass(self._tokens[self._rows, self._behind(starts, 1 + n_drafts)])  # (B, 1 + n_drafts, C)
        decided = self._decided(states, n_drafts, guesses)
        if self._drafter is not None:
            self._drafter.take(states, starts)
            self._cache.crop([length - 1 for length in self.lengths])
        return decided

    def _pass(self, tokens: Tensor) -> Tensor:
        assert self._cache is not None, "only a cache lets a pass read the new positions alone"
        if not self.sampling.is_compiled:
            return self.model.hidden(tokens, cache=self._cache)
        self._cache.check(tokens.shape[1])
        states: Tensor = _compiled_step()(self.model, tokens, self._cache)
        self._cache.advance(tokens.shape[1])
        return states

    def _decided(self, states: Tensor, n_drafts: int, guesses: list[Tensor]) -> list[Decided]:
        """Chooses what follows each of the states (B, 1 + n_drafts, C), and writes it behind the known tokens."""
        T = 1 + n_drafts
        logits = self.model.logits(states)  # (B, T, V)
        if not bool(logits.amax(dim=-1).isfinite().all()):
            raise ValueError("expected finite logits, got nan or infinity; hint: the model's training has diverged")
        turn, behind = self._turn(T), self._behind(self.lengths, T)  # (B, T) each
        drafts = self._tokens[self._rows, behind[:, :n_drafts]]  # (B, n_drafts)
        numbers = torch.stack((self._numbers[0][self._rows, turn], self._numbers[1][self._rows, turn, 1]), dim=-1)
        tokens, n_decided = decide(self.sampling, logits, drafts, guesses, numbers, self._is_seen)
        self._tokens[self._rows, behind] = tokens  # what is not decided lies behind the known tokens
        logprobs, likeliest = self._logprobs(logits, tokens)
        found = []
        for row, (ids, n) in enumerate(zip(tokens.tolist(), n_decided.tolist(), strict=True)):
            n_new = min(n, self.goals[row] - self.lengths[row])
            is_drafted = n_drafts if self.lengths[row] < self.goals[row] else 0
            self.lengths[row] += n_new
            found.append(
                Decided(ids[:n_new], logprobs[row][:n_new], likeliest[row][:n_new], is_drafted, n - 1 if n_new else 0)
            )
        return found

    def _logprobs(self, logits: Tensor, tokens: Tensor) -> tuple[list[list[float]], list[list[Any]]]:
        n_likeliest, B = self.sampling.logprobs, len(tokens)
        if n_likeliest is None:
            return [[]] * B, [[]] * B
        own, values, ids = (found.tolist() for found in log_probabilities(logits, tokens, n_likeliest))
        pairs = [
            [list(zip(*place, strict=True)) for place in zip(row_ids, row, strict=True)]
            for row_ids, row in zip(ids, values, strict=True)
        ]
        return own, pairs

    def _n_drafts(self) -> int:
        """How many drafts this round can use: no more than the learned positions leave room for."""
        if self._drafter is None:
            return 0
        n_drafts = min(self.sampling.n_drafts, self._max_len - max(self.lengths))
        if self.sampling.is_compiled or not self.sampling.is_greedy:
            # A compiled pass keeps its shape, and which numbers draw a token may not depend on other sequences' goals.
            return n_drafts
        left = max(goal - length for goal, length in zip(self.goals, self.lengths, strict=True))
        return min(n_drafts, left - 1)

    def _behind(self, starts: Sequence[int], T: int) -> Tensor:
        """T places of each sequence from its `starts` on, (B, T)."""
        return torch.tensor(starts, device=self._rows.device)[:, None] + torch.arange(T, device=self._rows.device)

    def _turn(self, T: int) -> Tensor:
        """Which new tokens the next T are, counted from 0, (B, T); beyond the last one, where none is, the last."""
        done = [length - prompt for length, prompt in zip(self.lengths, self.prompt_lengths, strict=True)]
        return self._behind(done, T).clamp(max=self.sampling.max_new_tokens - 1)

    def _slots(self, needed: int) -> int:
        """The size of the cache."""
        if self.sampling.is_compiled:
            needed = max(_LEAST_SLOTS, 1 << (needed - 1).bit_length())
        limit = self.model.config.position_limit
        return needed if limit is None else min(needed, limit)


@remembered
def _compiled_step() -> Any:
    """`Transformer.step`, compiled when it is first called for a model, a batch and a size of the cache."""
    return torch.compile(Transformer.step, dynamic=False)


def _padded(prompts: Sequence[Sequence[int]], length: int) -> Tensor:
    """The prompts, filled up with id 0 on the right: (B, length). Causality keeps the filling out of sight."""
    tokens = torch.zeros(len(prompts), length, dtype=torch.int64)  # (B, length)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor(prompt)
    return tokens


def _seen(prompts: Sequence[Sequence[int]], vocab_size: int) -> Tensor:
    """Which ids stand in each prompt: booleans (B, V)."""
    is_seen = torch.zeros(len(prompts), vocab_size, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        is_seen[row, torch.tensor(prompt)] = True
    return is_seen


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
