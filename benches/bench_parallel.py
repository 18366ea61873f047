"""What several ranks cost on the CPU: an update of two processes over that of one on half the batch.

Each of the two ranks times one process's updates on its half, both at once, then theirs together with DDP, with FSDP2
and with tensor parallelism, in turn: cores and memory are as busy in either. Losses are compared first.

    torchrun --nproc-per-node 2 benches/bench_parallel.py
"""

import dataclasses
import math
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from harness import arguments, record, summary

from gptrs.model import ModelConfig, Transformer
from gptrs.model.loss import counts
from gptrs.train import distributed
from gptrs.train.config import ParallelSettings
from gptrs.train.distributed import World
from gptrs.train.optim import adamw
from gptrs.train.spread import Spread

V, T, B = 4096, 128, 8  # rows of both ranks together
CONFIG = ModelConfig(vocab_size=V, max_seq_len=T, dim=256, n_layers=4, n_heads=4, inter_dim=1024)
STEPS = 4
SPLITS = {"ddp": {"data": "ddp"}, "fsdp2": {"data": "fsdp"}, "tensor": {"tensor": 2}}


def main() -> None:
    options = arguments(__doc__).parse_args()
    torch.set_num_threads(1)
    with distributed.join(ParallelSettings(), torch.device("cpu")) as world:
        alone = World.alone(world.device)
        engines = {"one process, half the batch": engine(alone, slice(world.rank * B // 2, (world.rank + 1) * B // 2))}
        for name, settings in SPLITS.items():
            here = arranged(world, settings)
            n = B // here.data_size
            engines[name] = engine(here, slice(here.data_rank * n, (here.data_rank + 1) * n))
        whole = float(engine(alone, slice(0, B))())
        for name in SPLITS:
            found = float(engines[name]())
            assert math.isclose(found, whole, abs_tol=1e-4), f"{name}: loss {found}, one process {whole}"
        engines["one process, half the batch"]()
        times = measured(engines, options.rounds)
        if world.is_main:
            write(times)


def arranged(world: World, settings: dict[str, object]) -> World:
    sizes = ParallelSettings(**settings).sizes(world.size, per_machine=world.size)  # type: ignore[arg-type]
    mesh, group = distributed.arrange(sizes, world.device)
    return dataclasses.replace(world, sizes=sizes, mesh=mesh, data_group=group)


def engine(world: World, rows: slice) -> Callable[[], torch.Tensor]:
    """One update of some rows as a function that returns its loss."""
    spread = Spread(Transformer(CONFIG, seed=0), world, dtype=torch.float32)
    optimizer = adamw(spread.model, lr=1e-4, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)
    spread.split_groups(optimizer)
    ids = torch.randint(V, (B, T + 1), generator=torch.Generator().manual_seed(0))[rows]
    tokens, targets = ids[:, :-1], ids[:, 1:]

    def loss_of(model: torch.nn.Module, totals: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = model.loss(tokens, targets, totals=totals)  # type: ignore[operator]
        return loss

    def update() -> torch.Tensor:
        totals = world.sum(counts(targets))
        with spread.microbatch(is_last=True):
            loss = spread.loss(loss_of, totals)
            loss.backward()
        spread.clip(1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return world.sum(loss.detach())

    return update


def measured(engines: dict[str, Callable[[], torch.Tensor]], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """(wall, processor) seconds of an update by engine, round by round."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    for _ in range(rounds):
        for name, update in engines.items():
            dist.barrier()
            start, busy = time.perf_counter(), time.process_time()
            for _ in range(STEPS):
                update()
            dist.barrier()
            times[name].append(((time.perf_counter() - start) / STEPS, (time.process_time() - busy) / STEPS))
    return times


def write(times: dict[str, list[tuple[float, float]]]) -> None:
    base = times["one process, half the batch"]
    for name, found in times.items():
        wall = [own[0] / other[0] for own, other in zip(found, base, strict=True)]
        busy = [own[1] / other[1] for own, other in zip(found, base, strict=True)]
        record("parallel", {"task": "update on 2 CPU ranks, gloo, fp32, fused AdamW, 1 thread each", "engine": name,
                            "B": B, "T": T, "dim": CONFIG.dim, "n_layers": CONFIG.n_layers, "vocab_size": V,
                            "ms": summary([1000 * own[0] for own in found], 1),
                            "processor_ms": summary([1000 * own[1] for own in found], 1),
                            "times_one_process": summary(wall, 3), "times_its_processor": summary(busy, 3)},
               packages=["torch"])  # fmt: skip


if __name__ == "__main__":
    main()
