"""Muon: equal to torch's where that applies, one batch for many matrices, and what it leaves to AdamW."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gptrs.model import ModelConfig, Transformer
from gptrs.train import checkpoint
from gptrs.train.config import OptimSettings
from gptrs.train.muon import Muon, hidden_matrices, newton_schulz, ratio
from gptrs.train.optim import clip, optimizer_of, set_learning_rate

torch.set_num_threads(1)
GPT = ModelConfig(vocab_size=32, max_seq_len=8, dim=8, n_layers=1, n_heads=2, inter_dim=16)
DEEPSEEK = ModelConfig.preset(
    "deepseek-tiny", vocab_size=64, max_seq_len=16, dim=32, n_layers=2, n_heads=2, inter_dim=48, kv_lora_rank=16,
    qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8, n_routed_experts=4, moe_inter_dim=24,
)  # fmt: skip
SETTINGS = OptimSettings(name="muon", lr=1e-2)


def gradients(parameters: list[nn.Parameter], n: int, seed: int = 0) -> Iterator[None]:
    """Gives the parameters n random gradients, one after the other."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator).to(p.device, p.dtype)
        yield


def matrices(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


@pytest.mark.parametrize("adjust", ["match_rms_adamw", "original"])
@pytest.mark.parametrize("is_nesterov", [True, False])
def test_on_matrices_it_is_torch_muon_step_for_step(adjust, is_nesterov):
    shapes = [(8, 12), (12, 8), (8, 8), (8, 12), (3, 40)]
    ours, theirs = matrices(*shapes), matrices(*shapes)
    given = {"lr": 0.02, "weight_decay": 0.3, "momentum": 0.9}
    group = {"params": ours, "is_hidden": True}
    muon = Muon([group], **given, adjust=adjust, is_nesterov=is_nesterov, dtype=torch.bfloat16)
    peer = torch.optim.Muon(theirs, **given, adjust_lr_fn=adjust, nesterov=is_nesterov)
    for _, _ in zip(gradients(ours, 20), gradients(theirs, 20), strict=True):
        muon.step()
        peer.step()
        for mine, other in zip(ours, theirs, strict=True):
            assert torch.equal(muon.state[mine]["momentum_buffer"], peer.state[other]["momentum_buffer"])
            torch.testing.assert_close(mine, other, atol=1e-6, rtol=0)  # an update moves elements by about 4e-3


def test_it_moves_the_singular_values_alone_and_all_of_them_near_one():
    x = torch.randn(3, 6, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, v = torch.linalg.svd(x / x.norm(dim=(-2, -1), keepdim=True), full_matrices=False)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    assert s.min() > 0.68 and s.max() < 1.21
    torch.testing.assert_close(newton_schulz(x), u @ s.diag_embed() @ v, atol=1e-12, rtol=0)
    assert not newton_schulz(torch.zeros(1, 3, 4)).any()


def test_the_ratios_are_those_of_their_sources():
    assert ratio(30, 10, "match_rms_adamw") == ratio(10, 30, "match_rms_adamw") == 0.2 * math.sqrt(30)
    assert ratio(40, 10, "original") == 2.0 and ratio(10, 40, "original") == 1.0


def test_with_matched_ratio_an_element_moves_as_far_as_adamws_typical_update():
    (p,) = matrices((64, 96))
    before, muon = p.detach().clone(), Muon([{"params": [p], "is_hidden": True}], lr=1.0, weight_decay=0.0)
    next(gradients([p], 1))
    muon.step()
    assert (p - before).square().mean().sqrt().item() == pytest.approx(0.2, rel=0.15)


def test_experts_are_matrices_of_their_own_and_shapes_do_not_meet():
    """Stacked, of another shape or split by rows: each matrix ends where it ends alone."""
    stacked, other = matrices((4, 6, 10), (10, 6))
    rows = matrices((12, 10))[0]  # (rows of one matrix | of the other)
    alternating = matrices((20, 6))[0]  # 2 of one, 3 of the other, by turns
    stacks: dict[Tensor, tuple[int, ...]] = {rows: (4, 8), alternating: (2, 3)}
    together = [stacked, other, rows, alternating]
    split = alternating.detach().view(4, 5, 6)
    alone = [
        *(nn.Parameter(x.clone()) for x in stacked.detach()),
        nn.Parameter(other.detach().clone()),
        *(nn.Parameter(x.clone()) for x in rows.detach().split([4, 8])),
        *(nn.Parameter(x.reshape(-1, 6)) for x in split.split([2, 3], dim=1)),
    ]
    muon = Muon([{"params": together, "is_hidden": True}], lr=0.1, weight_decay=0.2, stacks=stacks)
    muon_alone = Muon([{"params": alone, "is_hidden": True}], lr=0.1, weight_decay=0.2)
    for _ in gradients(together, 3):
        parts = [*stacked.grad, other.grad, *rows.grad.split([4, 8])]
        parts += [x.reshape(-1, 6) for x in alternating.grad.view(4, 5, 6).split([2, 3], dim=1)]
        for p, g in zip(alone, parts, strict=True):
            p.grad = g.clone()
        muon.step()
        muon_alone.step()
    results = [*stacked, other, *rows.split([4, 8])]
    results += [x.reshape(-1, 6) for x in alternating.view(4, 5, 6).split([2, 3], dim=1)]
    for mine, single in zip(results, alone, strict=True):
        torch.testing.assert_close(mine, single, atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", [GPT, DEEPSEEK], ids=["gpt", "deepseek"])
def test_matrices_of_blocks_are_muons_all_else_is_adamws(config):
    model = Transformer(config)
    names = {p: name for name, p in model.named_parameters()}
    optimizer = optimizer_of(model, SETTINGS)
    groups = {(g["is_hidden"], g["weight_decay"]): {names[p] for p in g["params"]} for g in optimizer.param_groups}
    hidden = groups[True, 0.1]
    assert all(("attn" in name or "ffn" in name or "joined" in name) for name in hidden)
    assert not any(part in name for name in hidden for part in ("norm", "bias", "router", "embed", "head"))
    assert {name for name in names.values() if ".experts." in name} <= hidden
    trained = {name for p, name in names.items() if p.requires_grad}
    assert set().union(*groups.values()) == trained
    assert all("bias" in name or "norm" in name for name in groups[False, 0.0])
    left = {name for p, name in names.items() if p.requires_grad and p.ndim >= 2} - hidden
    assert left == groups[False, 0.1]


def test_what_stands_in_one_matrix_is_known_by_its_module():
    model = Transformer(DEEPSEEK)
    found = {name: hidden_matrices(model)[p] for name, p in model.named_parameters() if p in hidden_matrices(model)}
    assert found["layers.0.attn.kv_down.weight"] == (16, 4) and found["layers.0.attn.kv_up.weight"] == (8, 8)
    assert found["layers.0.ffn.up.weight"] == (48, 48) and found["layers.1.ffn.experts.up"] == (24, 24)
    assert found["layers.1.ffn.experts.down"] == found["layers.0.attn.output.weight"] == ()
    gpt = Transformer(GPT)
    assert hidden_matrices(gpt)[gpt.layers[0].attn.qkv.weight] == (8, 8, 8)
    assert hidden_matrices(gpt)[gpt.layers[0].ffn.up.weight] == ()


def test_what_is_left_to_adamw_is_moved_as_by_adamw():
    model, twin = Transformer(GPT), Transformer(GPT)
    muon = optimizer_of(model, SETTINGS)
    adamw = optimizer_of(twin, OptimSettings(lr=1e-2))
    hidden = {name for name, p in model.named_parameters() if p in hidden_matrices(model)}
    for _, _ in zip(gradients([*model.parameters()], 5), gradients([*twin.parameters()], 5), strict=True):
        muon.step()
        adamw.step()
    for (name, mine), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, other) == (name not in hidden), name


def test_the_rate_of_matrices_keeps_its_ratio():
    optimizer = optimizer_of(Transformer(GPT), OptimSettings(name="muon", lr=1e-3, matrix_lr=2e-2, adjust="original"))
    set_learning_rate(optimizer, 5e-4)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-2, 5e-4, 5e-4])
    with pytest.raises(ValueError, match=r"optim.matrix_lr is Muon's, optim.name is adamw; hint: optim.name=muon"):
        OptimSettings(lr=1e-3, matrix_lr=1e-2)


def test_a_checkpoint_brings_back_every_state(tmp_path: Path):
    def train(model: Transformer, optimizer: torch.optim.Optimizer, seeds: range) -> None:
        for seed in seeds:
            tokens = torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(seed))
            model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
            clip(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    straight = Transformer(DEEPSEEK)
    train(straight, optimizer_of(straight, SETTINGS), range(6))
    stopped = Transformer(DEEPSEEK)
    optimizer = optimizer_of(stopped, SETTINGS)
    train(stopped, optimizer, range(3))
    path = checkpoint.save(tmp_path, step=3, model=stopped, optimizer=optimizer, state={}, keep=1)
    resumed = Transformer(DEEPSEEK, seed=9)
    again = optimizer_of(resumed, SETTINGS)
    checkpoint.load(path, resumed, again)
    train(resumed, again, range(3, 6))
    for one, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_parameters_without_a_gradient_stay():
    one, other = matrices((4, 4), (4, 4))
    muon = Muon([{"params": [one, other], "is_hidden": True}], lr=0.1, weight_decay=0.1)
    one.grad, before = torch.ones_like(one), other.detach().clone()
    muon.step()
    assert torch.equal(other, before) and other not in muon.state


def _sharded(rank: int, file: str) -> None:
    """One of two processes: sharded parameters end where whole ones end, and momentum stays sharded."""
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor, init_device_mesh

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    whole = matrices((6, 10), (12, 6), (3, 6, 10), (5, 4))
    axes = [0, 1, 0, 0]  # (5, 4): one rank has more rows than the other
    parts = [nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(i)])) for p, i in zip(whole, axes, strict=True)]
    given = {"lr": 0.1, "weight_decay": 0.2}
    muon = Muon([{"params": whole, "is_hidden": True}], **given, stacks={whole[1]: (4, 8)})
    split = Muon([{"params": parts, "is_hidden": True}], **given, stacks={parts[1]: (4, 8)})
    for _ in gradients(whole, 3):
        for p, part, i in zip(whole, parts, axes, strict=True):
            part.grad = distribute_tensor(p.grad, mesh, [Shard(i)])
        with FlopCounterMode(display=False) as all_products:
            muon.step()
        with FlopCounterMode(display=False) as products:
            split.step()
    both = torch.tensor([products.get_total_flops()])
    dist.all_reduce(both)
    assert int(both) == all_products.get_total_flops(), "each product once"
    for p, part in zip(whole, parts, strict=True):
        buffer = split.state[part]["momentum_buffer"]
        assert isinstance(buffer, DTensor) and buffer.to_local().numel() < p.numel()
        torch.testing.assert_close(part.full_tensor(), p.detach(), atol=1e-6, rtol=0)
    dist.destroy_process_group()


def test_sharded_matrices_end_where_whole_ones_do(tmp_path: Path):
    torch.multiprocessing.spawn(_sharded, args=(str(tmp_path / "store"),), nprocs=2)
