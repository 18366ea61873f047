"""The same results on CUDA as on the CPU. Run by `make test-gpu`; nothing here skips when there is no device."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import gptrs
from gptrs.generate import generate
from gptrs.model import ModelConfig, Transformer
from gptrs.model.attend import chosen
from gptrs.train.speed import set_tf32

pytestmark = pytest.mark.gpu

CONFIG = ModelConfig(vocab_size=300, max_seq_len=64, dim=64, n_layers=2, n_heads=4, inter_dim=256)


@pytest.fixture(autouse=True)
def full_products() -> Iterator[None]:
    """A run with speed.tf32 leaves torch's switch on, and products of other tests would have 10 bits."""
    yield
    set_tf32(False)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> gptrs.Dataset:
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "corpus.txt").write_text(Path(np.__file__).read_text(encoding="utf-8") * 4, encoding="utf-8")
    tok = gptrs.Tokenizer.train([folder / "corpus.txt"], vocab_size=300, progress=False)
    return gptrs.prepare([folder / "corpus.txt"], tok, folder / "data", progress=False)


def test_loss_and_gradients_equal_the_cpu() -> None:
    tokens = torch.randint(300, (4, 64), generator=torch.Generator().manual_seed(0))
    grads = {}
    for device in ("cpu", "cuda"):
        model = Transformer(CONFIG, seed=1).to(device)
        loss = model.loss(tokens.to(device), tokens.roll(-1, 1).to(device))
        loss.backward()
        grads[device] = [loss.detach().cpu(), *(p.grad.cpu() for p in model.parameters())]
    for cpu, cuda in zip(grads["cpu"], grads["cuda"], strict=True):
        torch.testing.assert_close(cuda, cpu, rtol=1e-3, atol=1e-4)


def test_loader_delivers_the_same_batches(dataset: gptrs.Dataset) -> None:
    options = {"seq_len": 32, "global_batch": 8, "seed": 3}
    with (
        gptrs.Loader(dataset, **options, device="cpu") as cpu,
        gptrs.Loader(dataset, **options, device="cuda") as cuda,
    ):
        for _, a, b in zip(range(50), cpu, cuda, strict=False):
            assert b.tokens.is_cuda
            assert b.tokens.dtype == torch.int64
            assert torch.equal(a.tokens, b.tokens.cpu())
            assert torch.equal(a.targets, b.targets.cpu())
            assert torch.equal(a.doc_ids, b.doc_ids.cpu())


def test_cached_generation_equals_uncached() -> None:
    model = Transformer(CONFIG, seed=1).to("cuda")
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    both = [
        generate(model, prompts, max_new_tokens=20, temperature=0.0, use_cache=use_cache) for use_cache in (True, False)
    ]
    assert both[0] == both[1]


INSIDE = {
    "multi-head": CONFIG,
    "grouped": ModelConfig(
        vocab_size=300, max_seq_len=256, dim=256, n_layers=2, n_heads=4, n_kv_heads=2, inter_dim=256, position="rope"
    ),
    "latent": ModelConfig(
        vocab_size=300, max_seq_len=256, dim=128, n_layers=2, n_heads=2, inter_dim=256, position="rope", norm="rms",
        feed_forward="swiglu", has_bias=False, kv_lora_rank=64, qk_nope_head_dim=128, qk_rope_head_dim=64,
        v_head_dim=128,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [(name, torch.bfloat16, 3e-2) for name in INSIDE]
    + [(name, torch.float32, 2e-3) for name in ("multi-head", "grouped")],
)
def test_flex_attention_equals_the_mask_in_outputs_and_gradients(
    name: str, dtype: torch.dtype, tolerance: float
) -> None:
    """Relative to the mask in float32, beside twice what the mask itself loses by rounding: to norms in bf16 a tenth.

    At lengths of less than a tile, of several, and of one that is not full.
    """
    config = INSIDE[name]
    for T in (64, 200) if config.position_limit is None else (64,):
        tokens = torch.randint(300, (3, T), generator=torch.Generator().manual_seed(0)).cuda()
        doc_ids = torch.tensor([[0] * T, [0] * 20 + [1] * (T - 20), [0] * 63 + [1] * (T - 63)]).cuda()
        found = []
        for by, used in (("sdpa", torch.float32), ("sdpa", dtype), ("auto", dtype)):
            model = Transformer(config, seed=1).to("cuda", used)
            model.document_attention = by
            loss = model.loss(tokens, tokens.roll(-1, 1), doc_ids=doc_ids)
            loss.backward()
            logits = model(tokens, doc_ids=doc_ids).detach()
            found.append([loss.detach(), logits, *(p.grad for p in model.parameters())])
            assert chosen(logits, config, by=by, is_training=True) == ("flex" if by == "auto" else "sdpa")
        for masked, rounded, flex in zip(*found, strict=True):
            lost = (masked - rounded.float()).norm()
            assert (masked - flex.float()).norm() <= tolerance * masked.norm() + 2 * lost


def test_flex_attention_compiles_where_tf32_is_on() -> None:
    set_tf32(True)
    model = Transformer(INSIDE["grouped"], seed=1).cuda()
    tokens = torch.randint(300, (3, 72), generator=torch.Generator().manual_seed(0)).cuda()
    doc_ids = (tokens == 7).cumsum(dim=-1)
    model.loss(tokens, tokens.roll(-1, 1), doc_ids=doc_ids).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("is_compiled", [False, True])
def test_bf16_training_learns_and_keeps_fp32_weights(tmp_path: Path, is_compiled: bool) -> None:
    from gptrs.train import config, pretrain

    (tmp_path / "corpus.txt").write_text(Path(np.__file__).read_text(encoding="utf-8") * 4, encoding="utf-8")
    overrides = [
        f"data.text={tmp_path / 'corpus.txt'}",
        f"run.dir={tmp_path / 'run'}",
        "run.device=cuda",
        "run.dtype=bf16",
        f"run.compile={str(is_compiled).lower()}",
        "train.steps=60",
    ]
    result = pretrain.run(config.load("shakespeare_cpu", overrides))
    assert result.val_loss < 4.0  # of ln 256 = 5.5 before
    weights = list((tmp_path / "run" / "checkpoints").glob("*/model.safetensors"))
    assert weights


@pytest.mark.parametrize(
    "overrides",
    [
        ["run.compile=true"],
        ["run.compile=true", "speed.compile=whole", "speed.cuda_graphs=true"],
        ["speed.checkpoint_blocks=2", "speed.vocab_multiple=100"],
        ["run.dtype=fp32", "speed.tf32=true"],
        ["run.dtype=fp32", "speed.tf32=true", "run.compile=true"],
        ["run.deterministic=true"],
    ],
    ids=["blocks", "graphs", "recomputed", "tf32", "tf32, blocks", "deterministic"],
)
def test_a_setting_of_speed_changes_nothing_but_rounding(tmp_path: Path, overrides: list[str]) -> None:
    from gptrs.train import config, pretrain

    (tmp_path / "corpus.txt").write_text(Path(np.__file__).read_text(encoding="utf-8") * 4, encoding="utf-8")
    common = [f"data.text={tmp_path / 'corpus.txt'}", "run.device=cuda", "train.steps=30", "train.eval_every=30"]
    losses = []
    for name, given in (("plain", []), ("fast", overrides)):
        result = pretrain.run(config.load("shakespeare_cpu", [*common, f"run.dir={tmp_path / name}", *given]))
        losses.append(result.val_loss)
    assert losses[1] == pytest.approx(losses[0], abs=0.03)


@pytest.mark.parametrize("is_whole", [False, True], ids=["by rows", "by blocks"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_and_its_gradients_are_the_plain_ones(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, is_whole: bool
) -> None:
    """An odd vocabulary, so rows are filled up; several stretches of rows; targets that do not count."""
    from gptrs.model import loss as losses

    monkeypatch.setitem(losses._CHUNK_BYTES, "cuda", 1 << 22)
    monkeypatch.setitem(losses._BLOCK_BYTES, "cuda", 1 << 22)
    monkeypatch.setitem(losses._WIDE_BYTES, "cuda", 0 if is_whole else 1 << 40)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 500, 64, generator=generator).to("cuda", dtype).requires_grad_()
    weight = (0.1 * torch.randn(5003, 64, generator=generator)).to("cuda", dtype).requires_grad_()
    targets = torch.randint(5003, (2, 500), generator=generator).cuda()
    targets[0, :9] = -100
    loss = losses.linear_cross_entropy(hidden, weight, targets)
    found = [loss.detach(), *torch.autograd.grad(loss, (hidden, weight))]
    true = losses.next_token_loss(hidden.double() @ weight.double().T, targets)
    wanted = [true.detach(), *torch.autograd.grad(true, (hidden, weight))]
    for got, expected in zip(found, wanted, strict=True):
        assert (got.double() - expected).norm() <= (1e-2 if dtype == torch.bfloat16 else 1e-5) * expected.norm()


def test_the_loss_takes_less_than_half_a_gigabyte() -> None:
    from gptrs.model.loss import linear_cross_entropy

    for dtype, most in ((torch.bfloat16, 0.4e9), (torch.float32, 0.6e9)):
        hidden = torch.randn(1, 8192, 2048, device="cuda", dtype=dtype, requires_grad=True)
        weight = (0.02 * torch.randn(129_280, 2048, device="cuda", dtype=dtype)).requires_grad_()
        targets = torch.randint(129_280, (1, 8192), device="cuda")
        for _ in range(2):  # the first compiles
            hidden.grad = weight.grad = None
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            linear_cross_entropy(hidden, weight, targets).backward()
            above = torch.cuda.max_memory_allocated() - before - hidden.nbytes - weight.nbytes
        assert above <= most, f"{dtype}: {above / 1e9:.2f} GB"
        del hidden, weight


@pytest.mark.parametrize("preset", ["gpt2-small", "deepseek-tiny"])
def test_an_update_never_waits_for_the_device(preset: str) -> None:
    from gptrs.train.distributed import World
    from gptrs.train.optim import adamw
    from gptrs.train.spread import Spread

    sizes = {"dim": 64, "n_heads": 4, "inter_dim": 128} if preset == "gpt2-small" else {}
    config = ModelConfig.preset(preset, vocab_size=512, max_seq_len=128, n_layers=2, **sizes)
    model = Transformer(config).cuda().train()
    spread = Spread(model, World.alone(torch.device("cuda")), dtype=torch.bfloat16)
    optimizer = adamw(model, lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)
    tokens = torch.randint(512, (4, 128), device="cuda")

    def update() -> None:
        spread.loss(lambda m: m.loss(tokens, tokens)).backward()
        spread.clip(1.0)
        optimizer.step()
        optimizer.zero_grad()

    update()  # compiles, and probes what torch can
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        update()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_products_in_8_bits_are_near_those_in_16() -> None:
    from gptrs.model import fp8

    if fp8.obstacle(torch.device("cuda")):
        with pytest.raises(RuntimeError):
            fp8.convert(layer := torch.nn.Linear(64, 64, device="cuda", dtype=torch.bfloat16))
            layer(torch.randn(32, 64, device="cuda", dtype=torch.bfloat16))
        return
    torch.manual_seed(0)
    layer = torch.nn.Linear(256, 512, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(4, 64, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    dy = torch.randn(4, 64, 512, device="cuda", dtype=torch.bfloat16)
    plain = [layer(x).detach(), *torch.autograd.grad(layer(x), (x, layer.weight), dy)]
    assert fp8.convert(layer) == 1
    small = [layer(x).detach(), *torch.autograd.grad(layer(x), (x, layer.weight), dy)]
    for got, wanted in zip(small, plain, strict=True):
        assert 1e-3 < (got - wanted).float().norm() / wanted.float().norm() < 0.1
