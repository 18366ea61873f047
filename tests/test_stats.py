"""Statistics of a run: the numbers are those of the textbook, and looking changes no bit of the training."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from gptrs.model import ModelConfig, Transformer, attend
from gptrs.model.attend import DocumentAttention, inside_documents
from gptrs.train.distributed import World
from gptrs.train.loop import FitOptions, Stops, fit
from gptrs.train.optim import adamw
from gptrs.train.parts import Parts
from gptrs.train.spread import Spread
from gptrs.train.stats import Statistics, Values, largest_score, seen

torch.set_num_threads(1)
GPT = ModelConfig(vocab_size=32, max_seq_len=8, dim=16, n_layers=2, n_heads=2, inter_dim=32, dropout=0.1)
DEEPSEEK = ModelConfig.preset(
    "deepseek-tiny", vocab_size=32, dim=16, n_layers=2, n_heads=2, inter_dim=24, kv_lora_rank=8, qk_nope_head_dim=6,
    qk_rope_head_dim=4, v_head_dim=6, moe_inter_dim=12,
)  # fmt: skip
LR = 1e-2


class Rows(NamedTuple):
    tokens: Tensor
    targets: Tensor


def batches(device: str = "cpu") -> Iterator[Rows]:
    generator = torch.Generator().manual_seed(0)
    while True:
        rows = torch.randint(32, (4, 9), generator=generator).to(device)
        yield Rows(rows[:, :-1], rows[:, 1:])


def run(
    config: ModelConfig,
    *,
    every: int,
    steps: int = 6,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    doc_ids: Tensor | None = None,
    by: DocumentAttention = "auto",
) -> dict[str, Any]:
    """A training of a few steps: its model, optimizer, losses, and the statistics by step."""
    torch.manual_seed(0)
    model = Transformer(config).to(device)
    model.document_attention = by
    optimizer = adamw(model, lr=LR, weight_decay=0.0, betas=(0.9, 0.99), eps=1e-8)
    parts = Parts(mtp_weight=0.3, balance_weight=1e-4, bias_speed=1e-3, attention="stream", eot_id=None)
    found: dict[int, Values] = {}
    losses: list[float] = []

    def all_blocks(model: nn.Module, rows: Rows) -> Tensor:
        return model.losses(rows.tokens, rows.targets, doc_ids=doc_ids)["next"]  # type: ignore[operator,no-any-return]

    statistics = Statistics(
        Spread(model, World.alone(torch.device(device)), dtype=dtype),
        optimizer,
        rows=next(batches(device)),
        loss_fn=all_blocks,
        loads=lambda: parts.loads,
        every=every,
        write=found.__setitem__,
    )
    fit(
        model,
        batches(device),
        loss_fn=parts.loss,
        optimizer=optimizer,
        learning_rate=lambda position: LR,
        options=FitOptions(steps=steps, log_every=1, dtype=dtype, clip=1.0),
        stops=Stops(log=lambda u: losses.append(u.loss), save=lambda p: None, evaluate=lambda *a: None,
                    sample=lambda *a: None),
        after_update=lambda is_left_out: parts.after_update([mixture for _, mixture in model.experts()], is_left_out),
        watch=statistics.watch,
    )  # fmt: skip
    return {"model": model, "optimizer": optimizer, "losses": losses, "found": found}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [GPT, DEEPSEEK], ids=["gpt", "deepseek"])
def test_looking_changes_no_bit(config: ModelConfig, dtype: torch.dtype) -> None:
    plain, watched = run(config, every=0, dtype=dtype), run(config, every=2, dtype=dtype)
    assert plain["found"] == {} and list(watched["found"]) == [2, 4, 6]
    assert plain["losses"] == watched["losses"]
    for one, other in zip(plain["model"].parameters(), watched["model"].parameters(), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(*(run["optimizer"].state.values() for run in (plain, watched)), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_every_part_of_every_layer_has_its_norms() -> None:
    found = run(DEEPSEEK, every=1, steps=1)["found"][1]
    kinds: dict[str, set[str]] = {}
    for name in found:
        kind, _, place = name.partition("/")
        kinds.setdefault(kind, set()).add(place)
    parts = {
        "outside/token embedding", "outside/norms", "outside/head", "0/attention", "0/feed-forward", "0/norms",
        "1/attention", "1/router", "1/routed experts", "1/shared experts", "1/norms", "further 0/further tokens",
    }  # fmt: skip
    assert kinds["grad_norm"] == kinds["weight_norm"] == kinds["update_ratio"] == parts
    for kind in ("act_mean", "act_std", "act_max", "logit_max"):
        assert kinds[kind] == {"0", "1", "further 0"}, kind
    assert kinds["loads"] == kinds["max_violation"] == {"1", "further 0"}
    for layer in kinds["loads"]:
        shares = found[f"loads/{layer}"]
        assert isinstance(shares, list) and len(shares) == 8 and sum(shares) == pytest.approx(1, abs=1e-4)
        assert found[f"max_violation/{layer}"] == pytest.approx(max(shares) * 8 - 1, abs=1e-3)


def test_the_numbers_are_those_of_the_textbook() -> None:
    """One update of Adam moves each weight by the learning rate, and the clipped gradient's norm is at most 1."""
    watched = run(GPT, every=1, steps=1)
    found, before = watched["found"][1], dict(Transformer(GPT).named_parameters())
    squares = sum(value**2 for name, value in found.items() if name.startswith("grad_norm/"))
    assert math.sqrt(squares) <= 1 + 1e-6
    attention = [name for name in before if name.startswith("layers.1.attn.") and name.endswith("weight")]
    moved = math.sqrt(sum((LR * 1.0) ** 2 * before[name].numel() for name in attention))
    old = math.sqrt(sum(float(before[name].detach().square().sum()) for name in attention))
    assert found["update_ratio/1/attention"] == pytest.approx(moved / old, rel=0.03), "biases begin at 0"
    now = [p for name, p in watched["model"].named_parameters() if name.startswith("layers.1.attn.")]
    expected = math.sqrt(sum(float(p.detach().square().sum()) for p in now))
    assert found["weight_norm/1/attention"] == pytest.approx(expected, rel=1e-5)

    model = watched["model"].eval()
    rows = next(batches())
    x = model.embed(rows.tokens, torch.arange(8))
    for layer, block in enumerate(model.layers):
        q, k = block.attn.queries_and_keys(block.attn_norm(x)[:1])
        scores = (q @ k.transpose(-1, -2) * block.attn.scale).tril().detach()
        assert found[f"logit_max/{layer}"] == pytest.approx(float(scores.max()), rel=1e-4)
        x = block(x)[0]
        assert found[f"act_max/{layer}"] == pytest.approx(float(x.detach().abs().max()), rel=1e-4)
        assert found[f"act_std/{layer}"] == pytest.approx(float(x.detach().std(correction=0)), rel=1e-4)
        assert found[f"act_mean/{layer}"] == pytest.approx(float(x.detach().mean()), rel=1e-3, abs=1e-6)


def test_the_largest_score_looks_back_only_and_knows_shared_heads() -> None:
    q = torch.zeros(2, 3, 2)
    k = torch.zeros(1, 3, 2)
    q[1, 1] = torch.tensor([2.0, 0.0])
    k[0, 0], k[0, 2] = torch.tensor([3.0, 0.0]), torch.tensor([100.0, 0.0])
    assert largest_score(q, k, 0.5, seen(None, q.unsqueeze(0))) == 3.0, "2·3·0.5 of head 1; the 100 stand behind it"


def test_an_update_that_is_not_made_has_no_statistics() -> None:
    model = Transformer(GPT)
    found: dict[int, Values] = {}
    optimizer = adamw(model, lr=LR, weight_decay=0.0, betas=(0.9, 0.99), eps=1e-8)
    statistics = Statistics(
        Spread(model, World.alone(torch.device("cpu")), dtype=torch.float32), optimizer, rows=next(batches()),
        loss_fn=lambda m, r: m.losses(*r)["next"], loads=lambda: (), every=1, write=found.__setitem__,
    )  # fmt: skip
    with statistics.watch(1):
        pass
    with pytest.raises(ZeroDivisionError), statistics.watch(2):
        raise ZeroDivisionError
    assert found == {} and not optimizer._optimizer_step_pre_hooks
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("by", ["sdpa", "flex"])
def test_scores_of_other_documents_are_not_seen(by: DocumentAttention, monkeypatch: pytest.MonkeyPatch) -> None:
    """By SDPA's mask, whatever computes in training: flex_attention, not compiled here, would hold all scores."""
    monkeypatch.setattr(attend, "_blocks", lambda doc_ids: pytest.fail("flex_attention"))
    config = replace(GPT, dropout=0.0)
    doc_ids = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3]).expand(4, -1)
    watched = run(config, every=1, steps=1, doc_ids=doc_ids, by=by)
    model = watched["model"].eval()
    assert model.document_attention == by
    x = model.embed(next(batches()).tokens, torch.arange(8))[:1]
    block = model.layers[0]
    q, k = block.attn.queries_and_keys(block.attn_norm(x))
    scores = (q @ k.transpose(-1, -2) * block.attn.scale).masked_fill(~inside_documents(doc_ids[:1]), -torch.inf)
    found = watched["found"][1]["logit_max/0"]
    assert found == pytest.approx(float(scores.detach().max()), rel=1e-4)
    assert found < run(config, every=1, steps=1)["found"][1]["logit_max/0"], "the largest score lies between documents"
