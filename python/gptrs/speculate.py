"""Speculative decoding: further-token modules guess some tokens, and one pass of the model judges all of them.

    tokens  … t(n)            │ drafts d₁ d₂          one pass over t(n) d₁ d₂ gives the logits behind each of them:
    states  … h(n - 1) ─module┘                       d₁ is kept if it is what the model would have said behind t(n), d₂
                                                      if so behind d₁; behind the last one kept the model's own token

Unusual here: further-token modules keep states of their own, one cache layer each. Module k reads at position i the
token k behind it, so its last k - 1 entries stand on drafts: they are forgotten and made anew after each round. A
draft beyond the last module comes from the last module again, one position on, with its own state for the model's.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gptrs.model import Transformer, new_cache
from gptrs.sampling import Sampling, draw


class Drafter:
    """Guesses the tokens behind the last known one; what it says costs or saves time and decides nothing.

    Attributes: n_modules: further-token modules in use.
    """

    def __init__(self, model: Transformer, sampling: Sampling, batch_size: int, max_len: int) -> None:
        weight = model.embed.token.weight
        self.model, self.sampling = model, sampling
        self.n_modules = min(len(model.further), sampling.n_drafts)
        # A pass takes as many positions of each sequence as the one with most of them has new.
        room = max_len + self.n_modules + sampling.n_drafts
        self._cache = new_cache(
            model.config, batch_size, room, n_layers=self.n_modules, device=weight.device, dtype=weight.dtype
        )
        self._states = torch.zeros(batch_size, 0, model.config.dim, device=weight.device, dtype=weight.dtype)
        self._first = [0] * batch_size  # the position of the first of the states of each sequence
        self._rows = torch.arange(batch_size, device=weight.device)[:, None]  # (B, 1)

    def read(self, states: Tensor, tokens: Tensor, start: int) -> None:
        """Takes a stretch of the prompts: their states (B, T, C) from position `start` on, and all their tokens."""
        T = states.shape[1]
        self._cache.check(T)
        for depth in range(self.n_modules):
            begin = start + depth + 1
            states = self.model.further_step(depth, states, tokens[:, begin : begin + T], self._cache)
        self._cache.advance(T)

    def end_prompts(self, lengths: Sequence[int], states: Tensor) -> None:
        """Ends the prompts at their lengths; states: the last n_modules of each, (B, n_modules, C)."""
        self._first = [length - self.n_modules for length in lengths]
        self._cache.crop([max(first, 0) for first in self._first])
        self._states = states

    def take(self, states: Tensor, starts: Sequence[int]) -> None:
        """Takes the model's states of a round, (B, T, C), from each sequence's `starts` on."""
        n_kept = self.n_modules - 1
        kept = self._states[self._rows, self._columns([start - n_kept for start in starts], n_kept)]
        self._states = torch.cat((kept, states), dim=1)  # (B, n_kept + T, C)
        self._first = [start - n_kept for start in starts]

    def draft(
        self, tokens: Tensor, ends: Sequence[int], n_drafts: int, numbers: Tensor, is_seen: Tensor | None
    ) -> list[Tensor]:
        """Writes n_drafts tokens behind each sequence's last known one, which is at `ends`.

        Args: tokens: (B, S); numbers: (B, n_drafts) uniform; is_seen: (B, V), for the repetition penalty, or None.
        Returns: the distribution each was drawn from, (B, V) float64; none when the likeliest is taken.
        """
        is_seen = None if is_seen is None else is_seen.clone()
        last = torch.tensor(ends, device=tokens.device)  # (B,)
        starts = self._cache.lengths
        T = max(end - start for end, start in zip(ends, starts, strict=True))
        self._cache.check(T)
        places = torch.tensor(starts, device=tokens.device)[:, None] + torch.arange(T, device=tokens.device)  # (B, T)
        states = self._states[self._rows, self._columns(starts, T)]  # (B, T, C)
        guesses: list[Tensor] = []
        state = states[:, :1]
        for k in range(1, n_drafts + 1):
            if k <= self.n_modules:
                states = self.model.further_step(k - 1, states, tokens[self._rows, places + k], self._cache)
                state = states[self._rows, (last - places[:, 0] - 1)[:, None]]  # (B, 1, C)
            else:
                if k == self.n_modules + 1:
                    self._cache.advance(T)
                    self._cache.crop(ends)
                self._cache.check(1)
                before = tokens[self._rows, (last + k - 1)[:, None]]  # (B, 1), the draft before this one
                state = self.model.further_step(self.n_modules - 1, state, before, self._cache)
                self._cache.advance(1)
            token = self._choose(self.model.logits(state.squeeze(1)), numbers[:, k - 1], is_seen, guesses)  # (B,)
            tokens[self._rows.squeeze(1), last + k] = token
        if n_drafts <= self.n_modules:
            self._cache.advance(T)
        self._cache.crop([max(end - self.n_modules + 1, 0) for end in ends])
        return guesses

    def _choose(self, logits: Tensor, number: Tensor, is_seen: Tensor | None, guesses: list[Tensor]) -> Tensor:
        """One draft of each sequence, (B,); it counts as seen, and what it was drawn from joins the guesses."""
        if self.sampling.is_greedy:
            token = self.sampling.scores(logits, is_seen).argmax(dim=-1)
        else:
            guesses.append(self.sampling.distribution(logits, is_seen))
            token = draw(guesses[-1], number)
        if is_seen is not None:
            is_seen[self._rows.squeeze(1), token] = True
        return token

    def _columns(self, starts: Sequence[int], T: int) -> Tensor:
        """Where the states of T positions stand, (B, T); past the last one, where nothing is read, the last one."""
        offsets = [start - first for start, first in zip(starts, self._first, strict=True)]
        columns = torch.tensor(offsets, device=self._states.device)[:, None]  # (B, 1)
        columns = columns + torch.arange(T, device=self._states.device)  # (B, T)
        return columns.clamp(0, self._states.shape[1] - 1)


def decide(
    sampling: Sampling, logits: Tensor, drafts: Tensor, guesses: Sequence[Tensor], numbers: Tensor,
    is_seen: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The next tokens of each sequence, T at most: drafts as long as they hold, then one of the model's own.

    With temperature 0 a draft holds when it is the likeliest token. Else it holds with probability min(1, p / q), p
    being the model's probability and q that which it was drawn with; when it does not, the token is drawn from what p
    has more than q. So each token is distributed as the model alone would draw it.

    Args: logits: (B, T, V); drafts: (B, T - 1); guesses: the q of each draft; numbers: (B, T, 2), uniform: the first
        draws, the second judges; is_seen: (B, V), for the repetition penalty, or None; the new tokens join it.
    Returns: tokens (B, T), and how many of them are decided, (B,): the drafts that hold, and one.
    Source: arXiv 2211.17192, algorithm 1; arXiv 2302.01318, algorithm 2.
    """
    B, T, _ = logits.shape
    is_open = torch.ones(B, dtype=torch.bool, device=logits.device)  # every draft so far holds
    n_decided = torch.zeros(B, dtype=torch.int64, device=logits.device)
    rows = torch.arange(B, device=logits.device)
    tokens = []
    for t in range(T):
        draft = drafts[:, t] if t < T - 1 else None
        if sampling.is_greedy:
            token = sampling.scores(logits[:, t], is_seen).argmax(dim=-1)  # (B,)
            is_held = None if draft is None else token == draft  # (B,)
        else:
            p = sampling.distribution(logits[:, t], is_seen)  # (B, V)
            token, is_held = _judged(p, draft, None if draft is None else guesses[t], numbers[:, t])  # (B,) each
        tokens.append(token)
        n_decided += is_open
        if is_seen is not None:
            is_seen[rows, token] |= is_open
        if is_held is not None:
            is_open = is_open & is_held
    return torch.stack(tokens, dim=1), n_decided


def _judged(p: Tensor, draft: Tensor | None, q: Tensor | None, numbers: Tensor) -> tuple[Tensor, Tensor | None]:
    """The draft where it holds, else a token from what p has more than q; (B,), and where it holds, (B,)."""
    if draft is None or q is None:
        return draw(p, numbers[:, 0]), None
    at = draft.unsqueeze(-1)  # (B, 1)
    is_held = numbers[:, 1] * q.gather(-1, at).squeeze(-1) < p.gather(-1, at).squeeze(-1)  # (B,)
    rest = (p - q).clamp(min=0.0)  # (B, V)
    # Where p is q but for rounding nothing is left, and the draft holds but for rounding.
    rest = torch.where(rest.sum(dim=-1, keepdim=True) > 0, rest, p)
    return torch.where(is_held, draft, draw(rest, numbers[:, 0])), is_held
