"""What several ranks use on CUDA, on the one GPU that there is: FSDP2 in bf16 over NCCL, and tokens that travel."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import Shard, distribute_tensor

from gptrs.model import ModelConfig, Transformer
from gptrs.model.loss import counts
from gptrs.train import distributed, fsdp
from gptrs.train.config import Sizes
from gptrs.train.distributed import World
from gptrs.train.spread import Objective, Spread

pytestmark = pytest.mark.gpu
CONFIG = ModelConfig.preset("deepseek-tiny", vocab_size=256, dim=64, n_layers=2, n_heads=2, inter_dim=128)


@pytest.fixture
def world() -> Iterator[World]:
    """A group of one rank with both backends, arranged on a mesh as several would be."""
    device, store = torch.device("cuda", 0), dist.HashStore()
    dist.init_process_group("cpu:gloo,cuda:nccl", store=store, rank=0, world_size=1, timeout=timedelta(seconds=60))
    mesh, group = distributed.arrange(Sizes(), device)
    yield World(rank=0, size=1, device=device, sizes=Sizes(), mesh=mesh, store=store, data_group=group)
    dist.destroy_process_group()


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(256, (4, 65), generator=torch.Generator().manual_seed(0)).cuda()
    return ids[:, :-1], ids[:, 1:]


def loss_of(model: torch.nn.Module, totals: torch.Tensor) -> torch.Tensor:
    tokens, targets = rows()
    loss: torch.Tensor = model.loss(tokens, targets, totals=totals)  # type: ignore[operator]
    return loss


def test_fsdp_in_bf16_computes_what_one_process_does(world: World) -> None:
    totals = counts(rows()[1], n_further=CONFIG.n_mtp_layers)
    plain = Spread(Transformer(CONFIG, seed=1), World.alone(world.device), dtype=torch.bfloat16)
    expected = plain.loss(loss_of, totals)
    expected.backward()
    model = Transformer(CONFIG, seed=1).cuda()
    root = Objective(model, dtype=None)
    rest = fsdp.shard(root, model, world, dtype=torch.bfloat16, is_compiled=False)
    assert len(rest) == len(list(model.experts())), "routers stay outside"
    loss = root(loss_of, totals)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-3)
    for (name, p), other in zip(model.named_parameters(), plain.model.parameters(), strict=True):
        if p.requires_grad:
            assert p.grad is not None and other.grad is not None and p.grad.dtype == torch.float32
            own = p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
            assert (own - other.grad).norm() <= 0.02 * other.grad.norm() + 1e-6, name


def test_tokens_that_travel_come_to_the_same_sums(world: World) -> None:
    model = Transformer(CONFIG, seed=1).cuda().bfloat16()
    tokens, targets = rows()
    losses = []
    for group in (None, dist.group.WORLD):
        for _, mixture in model.experts() if group is not None else ():
            experts, mesh = mixture.experts, world.mesh
            assert mesh is not None
            experts.share(expert_group=group, tensor_group=None)
            experts.up, experts.down = (
                torch.nn.Parameter(distribute_tensor(weight.detach(), mesh["expert"], [Shard(0)]))
                for weight in (experts.up, experts.down)
            )
        losses.append(model.loss(tokens, targets))
        losses[-1].backward()  # type: ignore[no-untyped-call]
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-3)


def test_a_step_waits_for_no_gpu_to_agree(world: World) -> None:
    """The ranks' votes meet on the CPU: work that is queued on the GPU goes on meanwhile."""
    torch.cuda._sleep(1_000_000_000)
    event = torch.cuda.Event()
    event.record()
    both = torch.ones(2, dtype=torch.float64)
    dist.all_reduce(both)
    assert not event.query()
    torch.cuda.synchronize()
