"""[speed]: each setting changes nothing but rounding, or says why it cannot."""

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from gptrs.model import ModelConfig, Transformer, fp8
from gptrs.model.block import keeping
from gptrs.train import speed
from gptrs.train.config import load
from gptrs.train.settings import RunSettings, SpeedSettings
from gptrs.train.spread import Objective

torch.set_num_threads(1)
DENSE = ModelConfig(vocab_size=61, max_seq_len=16, dim=32, n_layers=3, n_heads=2, inter_dim=64)
SPARSE = ModelConfig.preset("deepseek-tiny", vocab_size=61, n_layers=3)
CPU = torch.device("cpu")


def found(model: Transformer, *, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """The loss of fixed rows and every gradient."""
    tokens = torch.randint(61, (2, 16), generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    loss = Objective(model, dtype=dtype)(lambda m: m.loss(tokens, tokens.roll(-1, 1)))
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def assert_equal(
    model: Transformer, settings: SpeedSettings, *, within: float, dtype: torch.dtype = torch.float32
) -> None:
    plain = found(copy.deepcopy(model).train(), dtype=dtype)
    speed.prepare(model.train(), settings, device=CPU)
    for got, wanted in zip(found(model, dtype=dtype), plain, strict=True):
        assert (got - wanted).norm() <= within * wanted.norm().clamp(min=1e-6)


@pytest.mark.parametrize("config", [DENSE, SPARSE], ids=["dense", "sparse"])
@pytest.mark.parametrize(
    ("every", "dtype"), [(1, torch.float32), (2, torch.float32), (1, torch.bfloat16), (2, torch.bfloat16)]
)
def test_blocks_computed_again_give_the_same_bits(config: ModelConfig, every: int, dtype: torch.dtype) -> None:
    """In bfloat16 by the rounded weights, which are gone from the model when its backward pass begins."""
    assert_equal(Transformer(config, seed=3), SpeedSettings(checkpoint_blocks=every), within=0.0, dtype=dtype)


def test_every_nth_block_keeps_its_input_alone() -> None:
    def kept(every: int) -> int:
        model = Transformer(DENSE).train()
        speed.prepare(model, SpeedSettings(checkpoint_blocks=every), device=CPU)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.nbytes) or x, lambda x: x):
            found(model)
        return sum(sizes)

    assert kept(1) < kept(2) < kept(0)


@pytest.mark.parametrize("multiple", [64, 100])
def test_a_filled_up_vocabulary_gives_the_same_and_stays_out_of_the_model(multiple: int) -> None:
    model = Transformer(SPARSE, seed=3)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    assert_equal(model, SpeedSettings(vocab_multiple=multiple), within=1e-5)
    assert {name: p.shape for name, p in model.named_parameters()} == shapes
    assert model(torch.zeros(1, 4, dtype=torch.long)).shape == (1, 4, 61)


@pytest.mark.parametrize(
    ("config", "kinds", "dtype"),
    [(DENSE, 1, torch.float32), (DENSE, 1, torch.bfloat16), (SPARSE, 3, torch.bfloat16)],
    ids=["dense", "dense, bf16", "sparse, bf16"],
)
def test_one_compilation_serves_all_blocks_of_a_kind(config: ModelConfig, kinds: int, dtype: torch.dtype) -> None:
    """Dense, sparse, and the further token's block, which reads two states."""
    torch._dynamo.reset()
    model = Transformer(config, seed=3).train()
    plain = found(copy.deepcopy(model), dtype=dtype)
    counter = CompileCounterWithBackend("eager")
    model.compile_blocks(backend=counter)
    for _ in range(2):
        for got, wanted in zip(found(model, dtype=dtype), plain, strict=True):
            assert (got - wanted).norm() <= 2e-2 * wanted.norm().clamp(min=1e-6)
    assert counter.frame_count == kinds
    model.eval()
    model(torch.zeros(1, 7, dtype=torch.long))
    assert counter.frame_count == kinds  # neither evaluation nor generation compiles


def test_compiled_blocks_keep_the_share_they_are_given() -> None:
    kept: dict[float | None, int] = {}
    plain = found(Transformer(SPARSE, seed=3).train())
    for budget in (1.0, None, 0.5, 0.0):
        torch._dynamo.reset()
        model = Transformer(SPARSE, seed=3).train()
        model.compile_blocks(activation_budget=budget, backend="aot_eager_decomp_partition")
        storages: dict[int, int] = {}

        def keep(x: torch.Tensor, storages: dict[int, int] = storages) -> torch.Tensor:
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            got = found(model)
        kept[budget] = sum(storages.values())
        for one, wanted in zip(got, plain, strict=True):
            assert (one - wanted).norm() <= 1e-4 * wanted.norm().clamp(min=1e-6), budget
    assert kept[1.0] > kept[None] > kept[0.5] > kept[0.0], kept
    assert torch._functorch.config.activation_memory_budget == 1.0, "as it was"


def test_torch_keeps_what_it_is_set_to_where_nothing_is_asked_for() -> None:
    config = torch._functorch.config
    with config.patch(activation_memory_budget=0.3):
        for budget, device, share in ((None, "cuda", 0.3), (1.0, "cuda", 1.0), (None, "cpu", 0.9), (0.0, "cpu", 0.0)):
            with keeping(budget, torch.device(device)):
                assert config.activation_memory_budget == share
            assert config.activation_memory_budget == 0.3


@pytest.mark.long
def test_compiled_blocks_give_the_same() -> None:
    torch._dynamo.reset()
    model = Transformer(SPARSE, seed=3).train()
    plain = found(copy.deepcopy(model))
    model.compile_blocks()
    for got, wanted in zip(found(model), plain, strict=True):
        assert (got - wanted).norm() <= 1e-4 * wanted.norm().clamp(min=1e-6)


def test_tf32_is_torchs_own_switch() -> None:
    """There are two: torch refuses to read the one when the other alone was set, and its compiler reads both."""
    matmul, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.fp32_precision
    try:
        for is_on, precision in ((True, "tf32"), (False, "ieee")):
            speed.set_tf32(is_on)
            assert matmul.fp32_precision == precision and matmul.allow_tf32 == is_on
            assert torch.get_float32_matmul_precision() == ("high" if is_on else "highest")
    finally:
        matmul.allow_tf32 = False
        matmul.fp32_precision = before


# ── 8 bits ──


def test_numbers_are_rounded_to_8_bits_by_one_scale() -> None:
    small, scale = fp8.quantised(torch.tensor([896.0, 2.0, -0.5]), torch.float8_e4m3fn)
    assert small.float().tolist() == [448.0, 1.0, -0.25] and scale == 2.0
    small, scale = fp8.quantised(torch.zeros(3), torch.float8_e5m2)
    assert small.float().tolist() == [0.0, 0.0, 0.0] and scale > 0


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_layer_in_8_bits_is_the_one_of_its_rounded_factors(has_bias: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(32, 48, bias=has_bias)
    x, dy = torch.randn(2, 8, 32, requires_grad=True), torch.randn(2, 8, 48)

    def rounded(t: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        scale = t.abs().max() / torch.finfo(dtype).max
        return (t / scale).to(dtype).float() * scale

    w8, x8 = rounded(layer.weight.detach(), torch.float8_e4m3fn), rounded(x.detach(), torch.float8_e4m3fn)
    dy8 = rounded(dy, torch.float8_e5m2)
    assert fp8.convert(layer) == 1
    y = layer(x)
    y.backward(dy)
    torch.testing.assert_close(y, x8 @ w8.T + (layer.bias if has_bias else 0.0))
    torch.testing.assert_close(x.grad, dy8 @ w8)
    torch.testing.assert_close(layer.weight.grad, dy8.flatten(0, 1).T @ x8.flatten(0, 1))
    if has_bias:
        torch.testing.assert_close(layer.bias.grad, dy.sum((0, 1)))
    plain = torch.nn.functional.linear(x, layer.weight, layer.bias)
    assert torch.equal(layer.eval()(x), plain)  # evaluation is as ever
    assert 0.001 < (y - plain).norm() / plain.norm() < 0.06  # 3 bits of mantissa on either side


def test_a_model_in_8_bits_has_the_same_parameters_and_learns() -> None:
    model, plain = Transformer(DENSE, seed=3).train(), Transformer(DENSE, seed=3).train()
    names = list(model.state_dict())
    assert fp8.convert(model.layers) == 4 * DENSE.n_layers
    assert list(model.state_dict()) == names
    small, wide = found(model), found(plain)
    assert small[0] == pytest.approx(wide[0].item(), abs=0.05)
    assert not torch.equal(small[1], wide[1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        losses.append(found(model)[0].item())
        optimizer.step()
    assert losses[-1] < losses[0] - 1


# ── what cannot be ──


def test_what_the_device_cannot_do_is_refused_by_name() -> None:
    for settings, message in (
        (SpeedSettings(fp8=True), "speed.fp8 needs a CUDA device, got cpu; hint: speed.fp8=false"),
        (SpeedSettings(cuda_graphs=True), "speed.cuda_graphs needs a CUDA device, got cpu"),
    ):
        with pytest.raises(ValueError, match=message):
            speed.prepare(Transformer(DENSE), settings, device=CPU)


GRAPHS = ("speed.cuda_graphs=true", "run.compile=true", "speed.compile=whole")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["speed.checkpoint_blocks=-1"], "speed.checkpoint_blocks must be 0 .none. or more, got -1"),
        (["speed.activation_budget=1.5"], "speed.activation_budget must be from 0 to 1, got 1.5"),
        (["speed.vocab_multiple=0"], "speed.vocab_multiple must be from 1 to 65536, got 0"),
        (["speed.compile=all"], 'speed.compile must be "blocks" or "whole"'),
        (["speed.cuda_graphs=true"], "needs run.compile=true and speed.compile=whole, got run.compile=false"),
        ([*GRAPHS, "train.micro_batch=4"], "needs one microbatch for an update, got 3"),
        ([*GRAPHS, "model.preset=deepseek-tiny"], "needs a dense model"),
    ],
)
def test_a_config_that_cannot_be_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load("shakespeare_cpu", overrides)


def test_what_is_compiled_follows_from_run_and_speed() -> None:
    run = RunSettings(name="x", compile=True)
    blocks = {"is_compiled": True, "is_whole": False, "mode": None, "activation_budget": None}
    assert speed.compilation(run, SpeedSettings()) == blocks
    assert speed.compilation(run, SpeedSettings(activation_budget=0.5)) == {**blocks, "activation_budget": 0.5}
    config = load("shakespeare_cpu", GRAPHS)
    made = speed.compilation(config.run, config.speed)
    assert made == {**blocks, "is_whole": True, "mode": "reduce-overhead"}
