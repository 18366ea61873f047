"""What goes on inside a model while it trains: gradients, weights and their steps, activations, experts' loads.

    watch(step) ─ update: gradients as the optimizer gets them, weights before and behind it ─▶ norms ─┐
                └ held-out rows ─▶ each block's output, largest attention score ──────────────────────┴▶ log

Unusual here: activations are those of a pass of their own, without gradients and in eval mode, over the same held-out
rows each time, so that they compare between steps. Nothing is drawn and nothing counted in it: an update with
statistics ends in the same weights, to the bit, as one without. Nor is anything compiled in it, and flex_attention that
is not would hold the scores of all heads: documents are kept apart by SDPA's mask. While it looks there is one more
copy of the weights.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gptrs.model import Transformer, count
from gptrs.model.attend import Mask
from gptrs.model.moe import max_violation
from gptrs.model.ranks import local
from gptrs.train.loop import HasTokens
from gptrs.train.spread import LossFn, Spread

OUTSIDE = "outside"  # of the layers: embeddings, last norm, head
Values = dict[str, float | list[float]]


class Statistics:
    """The statistics of every `every`-th update of one run; none when that is 0.

    Their names are KIND/LAYER or KIND/LAYER/PART, with layers and parts as `gptrs plan` has them:
        grad_norm, weight_norm     of a part in a layer; gradients behind clipping, weights behind the update
        update_ratio               norm of the weights' step over their norm before it
        act_mean, act_std, act_max of a block's output: mean, spread, largest absolute value
        logit_max                  largest attention score before the softmax, in the first row, of what may be seen
        max_violation, loads       of a mixture's experts in the update: MaxVio, and each expert's share
    """

    def __init__(
        self,
        spread: Spread,
        optimizer: torch.optim.Optimizer,
        *,
        rows: HasTokens,
        loss_fn: LossFn,
        loads: Callable[[], Sequence[Tensor]],
        every: int,
        write: Callable[[int, Values], None],
    ) -> None:
        """Every rank makes one; several have their own rows.

        Args: rows, loss_fn: what the activations are of; loads: (E,) of each mixture in the last update.
        """
        assert isinstance(spread.model, Transformer)
        self.spread = spread
        self.model = spread.model
        self.optimizer = optimizer
        self.rows = rows
        self.loss_fn = loss_fn
        self.loads = loads
        self.every = every
        self.write = write

    @contextmanager
    def watch(self, step: int) -> Iterator[None]:
        """Is open around update `step`; writes its statistics where they are due and the update was made."""
        if self.every == 0 or step % self.every:
            yield
            return
        trained = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        found: Values = {}
        before: list[Tensor] = []

        def look(*_: Any) -> None:
            before.extend(local(p).detach().clone() for _, p in trained)
            found.update(self._by_part("grad_norm", trained, [p.grad for _, p in trained]))

        handle = self.optimizer.register_step_pre_hook(look)
        try:
            yield
        finally:
            handle.remove()
        if before:  # a guard may have left the update out
            found.update(self._steps(trained, before))
            before.clear()
            found.update(self._activations())
            found.update(self._experts())
            self.write(step, found)

    @torch.no_grad()
    def _steps(self, trained: Sequence[tuple[str, nn.Parameter]], before: Sequence[Tensor]) -> Values:
        """Norms of the weights, and of what the update changed in them over what they were.

        Args: before: this rank's part of each.
        """
        now = [local(p) for _, p in trained]
        old = self._by_part("update_ratio", trained, before)
        moved = self._by_part("update_ratio", trained, [a - b for a, b in zip(now, before, strict=True)])
        ratios: Values = {name: moved[name] / old[name] if old[name] else math.inf for name in moved}
        norms = self._by_part("weight_norm", trained, now)
        return {**norms, **{name: ratio for name, ratio in ratios.items() if ratio != math.inf}}

    def _by_part(
        self, kind: str, trained: Sequence[tuple[str, nn.Parameter]], tensors: Sequence[Tensor | None]
    ) -> dict[str, float]:
        """The norm of each part in each layer; tensors that are None count as zeros. Ranks meet once for all."""
        squares = torch.zeros(len(trained), dtype=torch.float64, device=self.spread.world.device)
        counted = [i for i, (_, p) in enumerate(trained) if tensors[i] is not None and self.spread.counts_here(p)]
        if counted:
            parts = [local(tensor) for i in counted if (tensor := tensors[i]) is not None]
            norms = torch.stack([torch.linalg.vector_norm(part, dtype=torch.float32) for part in parts])
            squares[counted] = norms.double().square()
        by_part: dict[str, float] = {}
        for (name, _), tensor, square in zip(
            trained, tensors, self.spread.world.sum_of_all(squares).tolist(), strict=True
        ):
            if tensor is not None:
                layer, part = count.place(name)
                key = f"{kind}/{layer or OUTSIDE}/{part.replace(',', '')}"
                by_part[key] = by_part.get(key, 0.0) + square
        return {key: math.sqrt(square) for key, square in by_part.items()}

    def _activations(self) -> Values:
        found: Values = {}
        blocks = {str(i): block for i, block in enumerate(self.model.layers)}
        blocks |= {f"further {i}": module.block for i, module in enumerate(self.model.further)}  # type: ignore[misc]
        was_training = self.model.training
        with ExitStack() as hooks, torch.no_grad(), torch.compiler.set_stance("force_eager"):
            for layer, block in blocks.items():
                handles = (
                    block.register_forward_hook(_noting_output(found, layer)),
                    block.attn.register_forward_pre_hook(_noting_scores(found, layer), with_kwargs=True),  # type: ignore[union-attr]
                )
                for handle in handles:
                    hooks.callback(handle.remove)
            self.model.eval()
            by, self.model.document_attention = self.model.document_attention, "sdpa"
            try:
                self.spread.loss(self.loss_fn, self.rows)
            finally:
                self.model.document_attention = by
                self.model.train(was_training)
        self._join_heads(found)
        return {name: found[name] for name in sorted(found, key=lambda name: name.partition("/")[0])}

    def _join_heads(self, found: Values) -> None:
        """Takes the largest scores of all ranks that share the heads."""
        world, names = self.spread.world, [name for name in found if name.startswith("logit_max/")]
        if world.sizes.tensor > 1 and world.mesh is not None:
            scores = torch.tensor([found[name] for name in names], device=world.device)
            dist.all_reduce(scores, op=dist.ReduceOp.MAX, group=world.mesh["tensor"].get_group())
            found.update(zip(names, scores.tolist(), strict=True))

    def _experts(self) -> Values:
        found: Values = {}
        for (name, _), loads in zip(self.model.experts(), self.loads(), strict=False):
            layer = count.place(f"{name}.router.weight")[0]
            found[f"max_violation/{layer}"] = round(max_violation(loads), 4)
            shares = loads.double() / loads.sum()
            found[f"loads/{layer}"] = [round(share, 5) for share in shares.tolist()]
        return found


def _noting_output(found: Values, layer: str) -> Callable[[nn.Module, Any, tuple[Tensor, Any]], None]:
    def note(_module: nn.Module, _inputs: Any, output: tuple[Tensor, Any]) -> None:
        x = output[0].float()  # (B, T, C)
        values = torch.stack([x.mean(), x.std(correction=0), x.abs().max()]).tolist()
        found.update({f"{kind}/{layer}": v for kind, v in zip(("act_mean", "act_std", "act_max"), values, strict=True)})

    return note


def _noting_scores(found: Values, layer: str) -> Callable[[nn.Module, Any, dict[str, Any]], None]:
    def note(module: nn.Module, inputs: tuple[Tensor], given: dict[str, Any]) -> None:
        turns = given.get("turns")
        turns = turns if turns is None or turns.ndim == 3 else turns[:1]  # (T, D / 2, 2) or (1, T, D / 2, 2)
        q, k = module.queries_and_keys(inputs[0][:1], turns=turns)  # type: ignore[operator]
        found[f"logit_max/{layer}"] = largest_score(q[0], k[0], float(module.scale), seen(given.get("mask"), q))  # type: ignore[arg-type]

    return note


def seen(mask: Mask, q: Tensor) -> Tensor:
    """Where the queries (B, H, T, D) of the first row may look: (T, T)."""
    T = q.shape[-2]
    if mask is None:
        return torch.ones(T, T, dtype=torch.bool, device=q.device).tril()
    assert isinstance(mask, Tensor), "the pass computes by SDPA"
    return mask[0, 0]


def largest_score(q: Tensor, k: Tensor, scale: float, seen: Tensor) -> float:
    """The largest q·k·scale of a position and one that it may see: (H, T, D), (K, T, D), head by head; seen (T, T)."""
    H = len(q)
    most = [
        (q[head] @ k[head * len(k) // H].T).masked_fill(~seen, -torch.inf).max()  # (T, T) → ()
        for head in range(H)
    ]
    return float(torch.stack(most).max().float() * scale)
