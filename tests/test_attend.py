"""Attention inside documents: flex_attention against SDPA with a mask, and which of them computes.

torch refuses gradients of flex_attention on the CPU for want of a kernel. Its dense form, which autograd and the tests
of the mask can use, has them: the fixture `gradients_on_cpu` takes the refusal away.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import flex_attention
from torch.nn.attention.flex_attention import BlockMask

from gptrs.model import ModelConfig, Transformer
from gptrs.model.attend import attend, chosen, inside_documents, sight

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

ROPE = {"position": "rope", "norm": "rms", "feed_forward": "swiglu", "has_bias": False}
SIZES = {"vocab_size": 29, "max_seq_len": 64, "dim": 24, "n_layers": 2, "n_heads": 6, "inter_dim": 48}
CONFIGS = {
    "multi-head": ModelConfig(**SIZES),
    "grouped": ModelConfig(**SIZES, **ROPE, n_kv_heads=2),
    "latent": ModelConfig.preset("deepseek-tiny", vocab_size=29, n_layers=2),
}
DOC_IDS = torch.tensor([[0] * 15 + [1] * 24 + [2], [7] * 40])
POSITIONS = torch.tensor([[*range(15), *range(24), 0], [*range(40)]])


def tokens(B=2, T=40):
    return torch.randint(29, (B, T), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def gradients_on_cpu(monkeypatch):
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)


def test_one_row_of_two_documents():
    """The worked example: doc_ids 3 3 5 5 5, of which each sees its own document, up to itself."""
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]
    doc_ids = torch.tensor([[3, 3, 5, 5, 5]])
    assert inside_documents(doc_ids).int().tolist() == [[expected]]
    blocks = sight(doc_ids, torch.zeros(1), CONFIGS["latent"], by="flex", is_training=True)
    seen = blocks.mask_mod(torch.tensor(0), torch.tensor(0), torch.arange(5)[:, None], torch.arange(5))
    assert seen.int().tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (3, 1)])
def test_flex_equals_the_mask_in_outputs_and_gradients(dtype, heads, kv_heads, gradients_on_cpu):
    """Values narrower than queries and keys, as latent attention has them."""
    generator = torch.Generator().manual_seed(heads)
    q, k, v = (
        torch.randn(2, n, 40, width, generator=generator, dtype=dtype, requires_grad=True)
        for n, width in ((heads, 12), (kv_heads, 12), (kv_heads, 5))
    )
    target = torch.randn(2, heads, 40, 5, generator=generator, dtype=dtype)
    found = []
    for by in ("sdpa", "flex"):
        mask = sight(DOC_IDS, q, CONFIGS["latent"], by=by, is_training=True)
        out = attend(q, k, v, mask=mask, is_causal=False, dropout=0.0, scale=0.3)
        found.append([out, *torch.autograd.grad((out * target).sum(), (q, k, v))])
    for masked, flex in zip(*found, strict=True):
        assert (masked - flex).abs().max() <= 20 * torch.finfo(dtype).eps * masked.abs().max()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("checkpoints_blocks", [False, True])
def test_a_model_learns_the_same_by_either(config, checkpoints_blocks, gradients_on_cpu):
    model, x = Transformer(config, seed=3).double(), tokens()
    model.checkpoints_blocks = checkpoints_blocks
    found = []
    for by in ("sdpa", "flex"):
        model.document_attention = by
        model.zero_grad()
        loss = model.loss(x, x.roll(-1, 1), positions=POSITIONS, doc_ids=DOC_IDS)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters() if p.requires_grad)])
    for masked, flex in zip(*found, strict=True):
        assert (masked - flex).abs().max() <= 1e-12 * masked.abs().max()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_packed_documents_equal_each_alone(config, gradients_on_cpu):
    model, x = Transformer(config, seed=3).double(), tokens(1)
    model.document_attention = "flex"
    target = torch.randn(1, 40, 29, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weights = [p for name, p in model.named_parameters() if p.requires_grad and not name.startswith("further")]
    together = model(x, positions=POSITIONS[:1], doc_ids=DOC_IDS[:1])
    alone = torch.cat([model(part) for part in x.split([15, 24, 1], dim=1)], dim=1)
    assert torch.allclose(together, alone, rtol=0, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad((together * target).sum(), weights),
        torch.autograd.grad((alone * target).sum(), weights),
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=0, atol=1e-10)


@torch.no_grad()
def test_a_compiled_model_makes_the_mask_in_its_graph():
    model, given = Transformer(CONFIGS["grouped"], seed=3).eval(), {"positions": POSITIONS, "doc_ids": DOC_IDS}
    model.document_attention = "flex"
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
    assert torch.allclose(compiled(tokens(), **given), model(tokens(), **given), rtol=0, atol=1e-5)


@pytest.mark.long
@torch.no_grad()
def test_the_kernel_compiled_for_the_cpu_equals_the_mask():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, 40, width, generator=generator) for n, width in ((4, 32), (2, 32), (2, 16)))
    masks = [sight(DOC_IDS, q, CONFIGS["latent"], by=by, is_training=False) for by in ("flex", "sdpa")]
    fused = torch.compile(attend, fullgraph=True)
    by_flex, masked = (fused(q, k, v, mask=mask, is_causal=False, dropout=0.0, scale=0.3) for mask in masks)
    assert torch.allclose(by_flex, masked, rtol=0, atol=1e-5)


def on_cuda(dtype):
    with FakeTensorMode():  # has the device and the type, and needs no GPU
        return torch.empty(1, device="cuda", dtype=dtype)


def wide(width, **changes):
    return ModelConfig(**SIZES | {"dim": 2 * width, "n_heads": 2} | changes)


def test_flex_is_chosen_on_cuda_where_it_can():
    v3 = ModelConfig.preset("deepseek-v3")  # queries of 192, values of 128
    cases = [
        (on_cuda(torch.bfloat16), v3, "flex"),
        (on_cuda(torch.float16), wide(64), "flex"),
        (on_cuda(torch.float32), wide(64), "flex"),
        (on_cuda(torch.float32), v3, "sdpa"),  # its tiles might not fit
        (on_cuda(torch.bfloat16), wide(512), "sdpa"),
        (on_cuda(torch.bfloat16), wide(8), "sdpa"),
        (on_cuda(torch.float64), wide(64), "sdpa"),
        (on_cuda(torch.bfloat16), wide(64, dropout=0.1), "sdpa"),
        (torch.zeros(1), wide(64), "sdpa"),
        (torch.zeros(1, device="meta"), wide(64), "sdpa"),
    ]
    for x, config, expected in cases:
        assert chosen(x, config, by="auto", is_training=True) == expected, (x.device, x.dtype, config)
        assert chosen(x, config, by="sdpa", is_training=True) == "sdpa"
    assert chosen(on_cuda(torch.bfloat16), wide(64, dropout=0.1), by="auto", is_training=False) == "flex"
    assert chosen(on_cuda(torch.float32), v3, by="flex", is_training=True) == "flex"  # told so, it tries


def test_flex_is_refused_where_it_cannot():
    model, x = Transformer(wide(64, dropout=0.1)), tokens()
    model.document_attention = "flex"
    with pytest.raises(ValueError, match=r"has no dropout on the attention weights, got dropout=0.1; hint: use 'sdpa'"):
        model(x, doc_ids=DOC_IDS)
    with torch.no_grad():
        model.eval()(x, doc_ids=DOC_IDS)
    for x, config, text in (
        (on_cuda(torch.float64), wide(64), r"torch.float64 on CUDA"),
        (on_cuda(torch.bfloat16), wide(8), r"heads narrower than 16 on CUDA, got 8"),
    ):
        with pytest.raises(ValueError, match=f"flex_attention has no {text}; hint"):
            chosen(x, config, by="flex", is_training=False)
    model.document_attention = "varlen"
    with pytest.raises(ValueError, match="expected document attention by auto, sdpa, flex, got 'varlen'"):
        model(tokens(), doc_ids=DOC_IDS)


def test_the_cpu_takes_the_mask():
    sdpa = sight(DOC_IDS, torch.zeros(1), CONFIGS["latent"], by="auto", is_training=True)
    assert torch.equal(sdpa, inside_documents(DOC_IDS))
    flex = sight(DOC_IDS, torch.zeros(1), CONFIGS["latent"], by="flex", is_training=True)
    assert isinstance(flex, BlockMask)
