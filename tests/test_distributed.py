"""Several ranks are one process: the same losses whatever the split, votes before errors, and who is missing."""

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from gptrs.model import ModelConfig, Transformer
from gptrs.train import cuts, distributed
from gptrs.train.config import OptimSettings, ParallelSettings, Sizes, TrainSettings
from gptrs.train.cuts import Cut
from gptrs.train.distributed import World
from gptrs.train.loop import FitOptions, Stops, fit, mean_loss
from gptrs.train.optim import optimizer_of
from gptrs.train.parts import Parts
from gptrs.train.signals import Stopped, leaving_at_once
from gptrs.train.spread import Spread
from ranks import environment, fork, free_port, on_ranks

torch.set_num_threads(1)
EOT, ROWS, T = 22, 8, 16
LR = 3e-3  # at 1e-2, on random tokens, the small DeepSeek doubles any rounding with each update
MODELS = {
    "gpt": ModelConfig(vocab_size=23, max_seq_len=T, dim=16, n_layers=2, n_heads=4, inter_dim=32),
    "deepseek": ModelConfig.preset(
        "deepseek-tiny", vocab_size=23, dim=16, n_layers=2, n_heads=4, inter_dim=32, kv_lora_rank=8, moe_inter_dim=8,
        q_lora_rank=8,
    ),
    "llama": ModelConfig(
        vocab_size=23, max_seq_len=T, dim=16, n_layers=1, n_heads=4, n_kv_heads=2, inter_dim=24, position="rope",
        norm="rms", feed_forward="swiglu", is_head_tied=False,
    ),
}  # fmt: skip


class Batch(NamedTuple):
    tokens: Tensor
    targets: Tensor


def batches(data_rank: int = 0, data_size: int = 1, accumulation: int = 1) -> Iterator[Batch]:
    """A rank's microbatches of the same endless rows; a third of the targets do not count, in some rows most."""
    generator = torch.Generator().manual_seed(0)
    while True:
        steps = torch.arange(T + 1) + torch.randint(23, (ROWS, 1), generator=generator)
        ids = (5 * steps + torch.randint(3, steps.shape, generator=generator)) % 23  # three likely tokens after each
        share = torch.rand(ROWS, 1, generator=generator)
        is_masked = torch.rand(ROWS, T, generator=generator) < share**2
        tokens, targets = ids[:, :-1], ids[:, 1:].masked_fill(is_masked, -100)
        n = ROWS // (data_size * accumulation)
        for i in range(accumulation):
            part = slice((i * data_size + data_rank) * n, (i * data_size + data_rank + 1) * n)
            yield Batch(tokens[part], targets[part])


def losses(
    kind: str,
    world: World,
    *,
    dtype: torch.dtype = torch.float64,
    steps: int = 5,
    accumulation: int = 1,
    optim: Literal["adamw", "muon"] = "adamw",
) -> list[float]:
    """The loss and the gradient norm of each update, and the loss of an evaluation behind them."""
    with torch.device("meta"):
        model = Transformer(MODELS[kind]).to(torch.promote_types(dtype, torch.float32))
    config = model.config
    parts = Parts(
        mtp_weight=0.3, balance_weight=0.01, bias_speed=0.01, attention="stream", eot_id=EOT, world=world,
        n_further=config.n_mtp_layers, z_weight=0.01,
    )  # fmt: skip
    spread = Spread(model, world, dtype=dtype, seed=1)
    optimizer = optimizer_of(model, OptimSettings(name=optim, lr=LR, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8))
    spread.split_groups(optimizer)
    found: list[float] = []

    def log(update: Any) -> None:
        found.extend([update.loss, update.grad_norm, *parts.log().values()])

    def nothing(*_: object) -> None:
        pass

    mixtures = [mixture for _, mixture in model.experts()]
    fit(
        model,
        batches(world.data_rank, world.data_size, accumulation),
        loss_fn=parts.loss,
        counts=parts.counts,
        optimizer=optimizer,
        learning_rate=lambda position: LR,
        options=FitOptions(steps=steps, accumulation=accumulation, log_every=1, dtype=dtype),
        stops=Stops(log=log, save=nothing, evaluate=nothing, sample=nothing),
        after_update=lambda is_left_out: parts.after_update(mixtures, is_left_out),
        spread=spread,
    )
    rows = [next(batches(world.data_rank, world.data_size))]
    found.append(mean_loss(model, rows, loss_fn=parts.next_loss, dtype=dtype, spread=spread)[0])
    return found


def split(world: World, **settings: Any) -> World:
    """The same ranks on another mesh."""
    sizes = ParallelSettings(**settings).sizes(world.size, per_machine=world.size)
    mesh, group = distributed.arrange(sizes, world.device)
    return dataclasses.replace(world, sizes=sizes, mesh=mesh, data_group=group)


SPLITS: dict[int, list[dict[str, Any]]] = {
    2: [{"data": "ddp"}, {"data": "fsdp"}, {"tensor": 2}, {"expert": 2}],
    4: [
        {"data": "ddp"},
        {"data": "fsdp"},
        {"data": "hsdp", "shard": 2},
        {"data": "fsdp", "tensor": 2},
        {"data": "fsdp", "expert": 2},
        {"expert": 2, "tensor": 2},
        {"expert": 4},
        {"expert": 2},
        {"tensor": 2},
        {"tensor": 4},
    ],
    8: [{"data": "fsdp", "expert": 2, "tensor": 2}, {"data": "hsdp", "shard": 2, "expert": 2}],
}


def kinds(settings: dict[str, Any]) -> list[str]:
    """Which models a split is tried on: experts need some, and grouped queries are one more case of "tensor" alone."""
    if "expert" in settings:
        return ["deepseek"]
    return ["gpt", "deepseek", "llama"] if settings.get("tensor") == 2 else ["gpt", "deepseek"]  # llama: 2 kv heads


def check(
    world: World, splits: list[dict[str, Any]], expected: dict[str, list[float]], dtype: torch.dtype, steps: int
) -> dict[str, float]:
    """The largest difference between a split's figures and those of one process, by split and model."""
    found = {}
    for settings in splits:
        here = split(world, **settings)
        for kind in kinds(settings):
            got = losses(kind, here, dtype=dtype, steps=steps, accumulation=2 if world.size == 2 else 1)
            differences = [abs(a - b) for a, b in zip(got, expected[kind], strict=True)]
            found[f"{kind} {settings}"] = max(differences)
    return found


@pytest.mark.parametrize("size", [2, 4])
def test_every_split_gives_the_losses_of_one_process(size: int, tmp_path: Path) -> None:
    alone = World.alone(torch.device("cpu"))
    expected = {kind: losses(kind, alone, steps=3) for kind in MODELS}
    splits = SPLITS[2] if size == 2 else [{"data": "hsdp", "shard": 2}, *SPLITS[4][3:6]]
    for found in on_ranks(size, tmp_path, lambda world: check(world, splits, expected, torch.float64, 3)):
        assert found and all(difference < 1e-9 for difference in found.values()), found


def with_muon(world: World, expected: list[float]) -> dict[str, float]:
    found = {}
    for settings in ({"data": "fsdp"}, {"tensor": 2}, {"expert": 2}):
        got = losses("deepseek", split(world, **settings), steps=3, optim="muon")
        found[f"{settings}"] = max(abs(a - b) for a, b in zip(got, expected, strict=True))
    return found


def test_with_muon_too(tmp_path: Path) -> None:
    expected = losses("deepseek", World.alone(torch.device("cpu")), steps=3, optim="muon")
    assert expected != losses("deepseek", World.alone(torch.device("cpu")), steps=3)
    for found in on_ranks(2, tmp_path, lambda world: with_muon(world, expected)):
        assert all(difference < 1e-9 for difference in found.values()), found


def rounded(world: World, expected: list[float]) -> dict[str, float]:
    found = {}
    for settings in ({"data": "fsdp"}, {"tensor": 2}, {"expert": 2}):
        got = losses("deepseek", split(world, **settings), dtype=torch.bfloat16, steps=2, accumulation=2)
        found[f"{settings}"] = max(abs(a - b) for a, b in zip(got, expected, strict=True))
    return found


def test_in_bf16_every_split_rounds_what_one_process_does(tmp_path: Path) -> None:
    expected = losses("deepseek", World.alone(torch.device("cpu")), dtype=torch.bfloat16, steps=2)
    exact = losses("deepseek", World.alone(torch.device("cpu")), dtype=torch.float32, steps=2)
    noise = max(abs(a - b) for a, b in zip(expected, exact, strict=True))
    assert noise > 1e-4, "it does round"
    for found in on_ranks(2, tmp_path, lambda world: rounded(world, expected)):
        assert all(difference < 3 * noise for difference in found.values()), (found, noise)


DRAWN: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"data": "fsdp", "tensor": 2}, ("gpt", "llama")),
    ({"expert": 2, "tensor": 2}, ("deepseek",)),
    ({"tensor": 4}, ("gpt",)),
    ({"data": "hsdp", "shard": 2}, ("gpt",)),
    ({"data": "fsdp", "expert": 2}, ("deepseek",)),
    ({"expert": 4}, ("deepseek",)),
    ({"data": "ddp"}, ("gpt", "deepseek")),
]


def parts_and_wholes(world: World, splits: int) -> list[str]:
    """The names of parameters that are not what one process draws once they are put together again."""
    wrong = []
    for settings, of in DRAWN[:splits]:
        for kind, config in ((kind, MODELS[kind]) for kind in of):
            plain = Transformer(config, seed=1)
            with torch.device("meta"):
                unreal = Transformer(config)
            spread = Spread(unreal, split(world, **settings), dtype=torch.float32, seed=1)
            assert sum(p.numel() for p in spread.model.parameters()) == sum(p.numel() for p in plain.parameters())
            whole = spread.whole()
            assert (whole is None) == (world.rank > 0)
            tokens = torch.arange(2 * T).view(2, T) % 23
            with torch.no_grad():
                logits = [spread.loss(nn.Module.__call__, tokens), plain(tokens)]
            assert (logits[0] - logits[1]).abs().max() < 1e-6, "asked for, the logits are gathered"
            for name, p in spread.model.named_parameters():
                expected = plain.get_parameter(name)
                is_right = torch.equal(cuts.whole(p.detach(), spread.cuts.get(name)), expected)
                if not is_right or (whole is not None and not torch.equal(whole.get_parameter(name), expected)):
                    wrong.append(f"{settings} {kind} {name}")
    return wrong


@pytest.mark.parametrize("splits", [3, pytest.param(len(DRAWN), marks=pytest.mark.long)])
def test_parts_put_together_are_the_model_of_one_process(splits: int, tmp_path: Path) -> None:
    assert on_ranks(4, tmp_path, lambda world: parts_and_wholes(world, splits)) == [[], [], [], []]


def gradients(world: World, kinds: Iterable[str] = MODELS, *, is_compiled: bool = False) -> dict[str, float]:
    """The largest difference of a parameter's gradient to that of one process."""
    found = {}
    for kind in kinds:
        plain, divided = (Transformer(MODELS[kind], seed=1).double() for _ in range(2))
        spread = Spread(divided, split(world, tensor=world.size), dtype=torch.float64, is_compiled=is_compiled)
        batch = next(batches())
        plain.loss(*batch).backward()
        spread.loss(Transformer.loss, *batch).backward()
        for name, p in plain.named_parameters():
            if p.grad is not None:
                other = divided.get_parameter(name).grad
                assert other is not None
                difference = (cuts.whole(other, spread.cuts.get(name)) - p.grad).abs().max()
                found[f"{kind} {name}"] = float(difference)
    return found


def test_tensor_ranks_have_the_gradients_of_one_process(tmp_path: Path) -> None:
    for found in on_ranks(2, tmp_path, gradients):
        assert {"gpt embed.token.weight", "deepseek head.weight", "llama head.weight"} <= found.keys()
        assert all(difference < 1e-13 for difference in found.values()), found


@pytest.mark.long
def test_and_so_when_loss_and_backward_are_compiled_as_one(tmp_path: Path) -> None:
    for found in on_ranks(2, tmp_path, lambda world: gradients(world, ["llama"], is_compiled=True), timeout_s=300):
        assert len(found) > 10 and all(difference < 1e-12 for difference in found.values()), found


def test_pieces_side_by_side_are_dealt_out_one_by_one() -> None:
    assert Cut(0, (4, 2)).order(2, torch.device("cpu")).tolist() == [0, 1, 4, 2, 3, 5]


@pytest.mark.long
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("size", SPLITS)
def test_and_so_over_a_hundred_steps(size: int, dtype: torch.dtype, tolerance: float, tmp_path: Path) -> None:
    alone = World.alone(torch.device("cpu"))
    expected = {kind: losses(kind, alone, dtype=dtype, steps=100) for kind in MODELS}
    splits = SPLITS[size]
    for found in on_ranks(size, tmp_path, lambda world: check(world, splits, expected, dtype, 100), timeout_s=3000):
        assert found and all(difference < tolerance for difference in found.values()), found


def test_microbatches_are_one_batch_whatever_they_leave_out() -> None:
    alone = World.alone(torch.device("cpu"))
    for kind in MODELS:
        whole = losses(kind, alone)
        assert losses(kind, alone, accumulation=4) == pytest.approx(whole, abs=1e-11)


def votes(world: World) -> dict[str, Any]:
    """What each rank gets to see of errors, times, requests to stop and work that rank 0 does first."""
    seen: dict[str, Any] = {"sum": world.sum(torch.tensor([world.rank + 1, 1])).tolist()}
    with world.together():
        pass
    for failing in ((1,), (0, 1)):
        try:
            with world.together():
                if world.rank in failing:
                    raise OSError(f"no room on {world.rank}")
        except (OSError, ValueError) as error:
            seen[f"{failing}"] = f"{type(error).__name__}: {error}"
    seen["agreed"] = world.agreed(10.0 + world.rank, 15 * world.rank)
    seen["first"] = world.main_first(lambda: world.rank)
    done = []
    try:
        world.main_first(lambda: done.append(1) or 1 // (1 - int(world.is_main)))  # type: ignore[func-returns-value]
    except (ZeroDivisionError, ValueError) as error:
        seen["failed first"] = [type(error).__name__, str(error), len(done)]
    return seen


def votes_without_barrier(world: World) -> dict[str, Any]:
    """A barrier meets on the GPUs, where there are some: a rank whose own has failed would never come to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "barrier", lambda *_: pytest.fail("a barrier"))
        return votes(world)


def test_ranks_decide_together(tmp_path: Path) -> None:
    main, other = on_ranks(2, tmp_path, votes_without_barrier)
    assert main["sum"] == other["sum"] == [3, 2]
    assert main["(1,)"] == "ValueError: rank 1: no room on 1" and other["(1,)"] == "OSError: no room on 1"
    assert main["(0, 1)"] == "OSError: no room on 0" and other["(0, 1)"] == "OSError: no room on 1"
    assert main["agreed"] == other["agreed"] == [10.0, 15]
    assert (main["first"], other["first"]) == (0, 1)
    assert main["failed first"][0] == "ZeroDivisionError" and main["failed first"][2] == 1
    assert other["failed first"][0] == "ValueError" and other["failed first"][2] == 0


def stopped_while_rank_0_prepares(world: World) -> float:
    """Seconds until a rank that waits for rank 0 has heard its signal."""
    begun = time.monotonic()
    if world.is_main:
        world.main_first(lambda: time.sleep(5))
        return 0.0
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(Stopped), leaving_at_once():
        world.main_first(lambda: None)
    heard = time.monotonic() - begun
    with world.together():  # rank 0's vote
        pass
    return heard


def test_a_rank_that_waits_hears_its_signal(tmp_path: Path) -> None:
    assert 0.2 <= on_ranks(2, tmp_path, stopped_while_rank_0_prepares)[1] < 4


def test_a_rank_that_does_not_come_is_named() -> None:
    port = free_port()

    def one(rank: int) -> None:
        with (
            pytest.raises(OSError, match=r"expected 3 ranks within 0\.5 s, got none of ranks 1, 2; hint: see what"),
            distributed.join(ParallelSettings(timeout_s=0.5), torch.device("cpu"), environment(rank, 3, port)),
        ):
            pass

    assert fork(1, one, 20) == [0]


def test_starts_that_share_a_store_do_not_read_each_other(tmp_path: Path) -> None:
    """Agents of torchrun keep a store, and may have restarted their ranks as often as ever or never."""
    agent = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def one(rank: int, size: int) -> None:
        more = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": str(rank)}
        values = environment(rank, size, agent.port) | more
        with distributed.join(ParallelSettings(timeout_s=20), torch.device("cpu"), values) as world:
            assert world.sum(torch.tensor([1])).tolist() == [size]
            with pytest.raises(ValueError, match="no room"), world.together():
                raise ValueError("no room")

    for size in (2, 3, 2):
        assert fork(size, lambda rank, size=size: one(rank, size)) == [0] * size  # type: ignore[misc]


def test_a_rank_0_that_does_not_come_is_named_too() -> None:
    settings, values = ParallelSettings(timeout_s=0.5), environment(1, 2, free_port())
    with (
        pytest.raises(OSError, match=r"rank 0 did not answer on port \d+ of 127\.0\.0\.1 within 0\.5 s"),
        distributed.join(settings, torch.device("cpu"), values),
    ):
        pass


def test_a_port_in_use_is_named() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))  # noqa: S104
        taken.listen()
        port = int(taken.getsockname()[1])
        settings, values = ParallelSettings(timeout_s=5), environment(0, 2, port)
        with (
            pytest.raises(OSError, match=rf"cannot listen on port {port} of .* hint: another MASTER_PORT"),
            distributed.join(settings, torch.device("cpu"), values),
        ):
            pass


def test_one_process_needs_no_group_and_pays_nothing() -> None:
    with distributed.join(ParallelSettings(), torch.device("cpu"), {}) as world:
        assert world.is_main and (world.size, world.data_size, world.mesh) == (1, 1, None)
        tensor = torch.ones(2)
        assert world.sum(tensor) is tensor and world.agreed(1.5, 2) == (1.5, 2)
        assert not torch.distributed.is_initialized()
        with pytest.raises(KeyError), world.together():
            raise KeyError


@pytest.mark.parametrize(
    ("settings", "size", "expected"),
    [
        ({}, 4, Sizes(replicate=4)),
        ({"data": "fsdp"}, 4, Sizes(shard=4)),
        ({"data": "hsdp"}, 16, Sizes(replicate=2, shard=8)),
        ({"data": "hsdp", "shard": 2}, 4, Sizes(replicate=2, shard=2)),
        ({"shard": 2}, 4, Sizes(replicate=2, shard=2)),
        ({"data": "fsdp", "expert": 2, "tensor": 2}, 8, Sizes(shard=2, expert=2, tensor=2)),
        ({"expert": 4}, 4, Sizes(expert=4)),
    ],
)
def test_ranks_along_each_dimension(settings: dict[str, Any], size: int, expected: Sizes) -> None:
    assert ParallelSettings(**settings).sizes(size, per_machine=8) == expected


@pytest.mark.parametrize(
    ("settings", "size", "message"),
    [
        ({"expert": 2, "tensor": 2}, 6, r"\(4\) must divide the number of ranks, got 6; hint: torchrun .* 8"),
        ({"shard": 3}, 4, r"parallel\.shard must divide the 4 ranks .* got 3; hint: parallel\.shard=4"),
        ({"data": "fsdp", "shard": 2}, 4, r"parallel\.shard must be the 4 ranks"),
        ({"data": "ddp", "shard": 2}, 4, r"parallel\.data=ddp shares no weights, got parallel\.shard=2"),
        ({"tensor": 0}, 1, r"parallel\.tensor must be at least 1, got 0"),
        ({"timeout_s": 0.0}, 1, r"parallel\.timeout_s must be positive, got 0\.0"),
    ],
)
def test_ranks_that_cannot_be_divided_so(settings: dict[str, Any], size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ParallelSettings(**settings).sizes(size, per_machine=size)


def test_a_batch_that_the_ranks_cannot_share_is_an_error() -> None:
    train = TrainSettings(steps=1, global_batch=12, seq_len=8, micro_batch=2)
    assert (train.rows(3), train.accumulation(3), train.accumulation()) == (2, 2, 6)
    with pytest.raises(ValueError, match=r"multiple of 8, for 4 ranks that read 2 rows at a time, got 12; hint: .*=8"):
        train.rows(4)
    assert TrainSettings(steps=1, global_batch=12, seq_len=8).rows(3) == 4


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"WORLD_SIZE": "2"}, "expected RANK beside WORLD_SIZE=2, got none; hint: torchrun sets both"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "expected RANK below WORLD_SIZE=2, got 2; hint: torchrun sets both"),
        ({"WORLD_SIZE": "2", "RANK": "x"}, "expected a number of at least 0 in RANK, got 'x'; hint: torchrun sets it"),
        ({"WORLD_SIZE": "0"}, "expected a number of at least 1 in WORLD_SIZE, got '0'"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_WORLD_SIZE": ""}, "at least 1 in LOCAL_WORLD_SIZE, got ''"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "-1"}, "at least 0 in MASTER_PORT, got '-1'"),
    ],
)
def test_a_half_set_environment_is_named_before_anybody_waits(values, says):
    with (
        pytest.raises(distributed.PlaceError, match=says) as error,
        distributed.join(ParallelSettings(timeout_s=0.5), torch.device("cpu"), values),
    ):
        pass
    assert error.value.on_each_rank
