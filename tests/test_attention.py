"""Attention against its formula written out, and the cache against having none."""

import dataclasses
import math

import pytest
import torch

from gptrs.model import KVCache, ModelConfig, Transformer
from gptrs.model.attention import Attention

CONFIG = ModelConfig(vocab_size=29, max_seq_len=24, dim=24, n_layers=2, n_heads=3, inter_dim=48)


def plain_attention(attention, x):
    """softmax(q·kᵀ / √D + causal mask)·v, head by head, position by position."""
    _, T, C = x.shape
    q, k, v = (x @ attention.qkv.weight.T + attention.qkv.bias).split(C, dim=-1)  # (B, T, C) each
    D, heads = attention.head_dim, []
    for head in range(attention.n_heads):
        columns = slice(head * D, (head + 1) * D)
        rows = []
        for t in range(T):
            scores = torch.einsum("bd,bsd->bs", q[:, t, columns], k[:, : t + 1, columns]) / math.sqrt(D)  # (B, t + 1)
            rows.append(torch.einsum("bs,bsd->bd", scores.softmax(-1), v[:, : t + 1, columns]))  # (B, D)
        heads.append(torch.stack(rows, dim=1))  # (B, T, D)
    return torch.cat(heads, dim=-1) @ attention.output.weight.T + attention.output.bias  # (B, T, C)


@pytest.fixture
def model():
    return Transformer(CONFIG, seed=3).eval()


@pytest.fixture
def tokens():
    return torch.randint(CONFIG.vocab_size, (3, 20), generator=torch.Generator().manual_seed(1))


def random_attention():
    torch.manual_seed(0)
    return Attention(CONFIG, 0).double()


@pytest.mark.parametrize("T", [1, 2, 7])
def test_attention_is_its_formula(T):
    attention, x = random_attention(), torch.randn(2, T, CONFIG.dim, dtype=torch.float64, requires_grad=True)
    fast, slow = attention(x), plain_attention(attention, x)
    assert torch.allclose(fast, slow, rtol=0, atol=1e-13)
    weights = [x, *attention.parameters()]
    target = torch.randn_like(slow)
    fast_grads = torch.autograd.grad((fast * target).sum(), weights)
    slow_grads = torch.autograd.grad((slow * target).sum(), weights)
    for fast_grad, slow_grad in zip(fast_grads, slow_grads, strict=True):
        assert torch.allclose(fast_grad, slow_grad, rtol=0, atol=1e-12)


def test_an_explicit_causal_mask_changes_nothing():
    attention, x = random_attention(), torch.randn(2, 6, CONFIG.dim, dtype=torch.float64)
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    assert torch.allclose(attention(x, mask=mask), attention(x), rtol=0, atol=1e-13)


@torch.no_grad()
@pytest.mark.parametrize("position", ["learned", "sinusoidal"])
@pytest.mark.parametrize("cuts", [(20,), (10, 11, 20), (1, 3, 6, 20), tuple(range(1, 21))])
def test_cached_equals_uncached_for_any_chunks(tokens, position, cuts):
    model = Transformer(dataclasses.replace(CONFIG, position=position), seed=3).eval()
    cache = KVCache(model.config, 3, 20)
    chunks = [model(tokens[:, a:b], cache=cache) for a, b in zip((0, *cuts), cuts, strict=False)]
    assert torch.allclose(torch.cat(chunks, dim=1), model(tokens), rtol=0, atol=1e-5)
    assert cache.lengths == (20, 20, 20)


@torch.no_grad()
def test_sequences_of_different_lengths_in_one_batch_equal_each_alone(model, tokens):
    lengths = (5, 1, 9)
    padded = tokens[:, :9].clone()
    for row, length in enumerate(lengths):
        padded[row, length:] = 28  # what stands in the padding does not matter
    cache = KVCache(CONFIG, 3, 24)
    first = model(padded, cache=cache)
    cache.crop(lengths)
    after = [model(tokens[:, 10:13], cache=cache), model(tokens[:, 13:14], cache=cache)]
    together = torch.cat(after, dim=1)
    for row, length in enumerate(lengths):
        alone = model(torch.cat((tokens[row, :length], tokens[row, 10:14])).unsqueeze(0))[0]
        assert torch.allclose(first[row, :length], alone[:length], rtol=0, atol=1e-5)
        assert torch.allclose(together[row], alone[length:], rtol=0, atol=1e-5)
    assert cache.lengths == (9, 5, 13)


@torch.no_grad()
def test_a_cropped_cache_continues_as_if_the_rest_had_never_been(model, tokens):
    cache = KVCache(CONFIG, 3, 24)
    model(tokens, cache=cache)
    cache.crop(7)
    again = model(tokens[:, 7:12], cache=cache)
    assert torch.allclose(again, model(tokens[:, :12])[:, 7:], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_view_shares_the_storage_and_holds_what_was_appended(model, tokens):
    cache = KVCache(CONFIG, 3, 24)
    model(tokens[:, :4], cache=cache)
    keys, values = cache.view(1)
    assert keys.shape == values.shape == (3, CONFIG.n_heads, 4, CONFIG.head_dim)
    before = keys.clone()
    model(tokens[:, 4:6], cache=cache)
    longer, _ = cache.view(1)
    assert torch.equal(longer[:, :, :4], before)
    assert longer.data_ptr() == keys.data_ptr()


@torch.no_grad()
def test_a_full_cache_is_refused_before_any_work(model, tokens):
    cache = KVCache(CONFIG, 3, 10)
    model(tokens[:, :8], cache=cache)
    with pytest.raises(ValueError, match=r"the cache holds 10 positions, 11 needed; hint: use max_len=11"):
        model(tokens[:, :3], cache=cache)
    assert cache.lengths == (8, 8, 8)
    model(tokens[:, 8:10], cache=cache)  # the refused call has left nothing behind


def test_impossible_requests_of_a_cache_are_refused(model, tokens):
    with pytest.raises(ValueError, match=r"max_len \(25\) must not exceed the 24 learned positions; hint"):
        KVCache(CONFIG, 1, 25)
    cache = KVCache(CONFIG, 2, 10)
    with pytest.raises(ValueError, match="cannot crop sequence 1 to 3 positions, it has 0"):
        cache.crop((0, 3))
    with pytest.raises(ValueError, match="expected 2 lengths, one for each sequence, got 3"):
        cache.crop((0, 0, 0))
    with pytest.raises(ValueError, match="expected positions or a cache, got both"):
        model(tokens[:2], cache=cache, positions=torch.arange(20))


def grouped(kv_heads, **changes):
    sizes = {"vocab_size": 29, "max_seq_len": 24, "dim": 24, "n_layers": 2, "n_heads": 6, "inter_dim": 48}
    return ModelConfig(**sizes | changes, n_kv_heads=kv_heads)


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
def test_heads_that_share_keys_are_heads_with_equal_keys(kv_heads):
    """Query head h reads kv head h // (H / K): multi-head attention whose keys and values are written out for each."""
    torch.manual_seed(0)
    config = grouped(kv_heads)
    attention, whole = Attention(config, 0).double(), Attention(grouped(0), 0).double()
    D, repeats = config.head_dim, config.n_heads // kv_heads
    for kind in ("weight", "bias"):
        q, k, v = torch.split(getattr(attention.qkv, kind).data, [6 * D, kv_heads * D, kv_heads * D])
        k, v = (part.unflatten(0, (kv_heads, D)).repeat_interleave(repeats, 0).flatten(0, 1) for part in (k, v))
        getattr(whole.qkv, kind).data.copy_(torch.cat((q, k, v)))
        getattr(whole.output, kind).data.copy_(getattr(attention.output, kind))
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    assert torch.allclose(attention(x), whole(x), rtol=0, atol=1e-13)
    assert torch.allclose(whole(x), plain_attention(whole, x), rtol=0, atol=1e-13)


@torch.no_grad()
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_a_cache_holds_the_shared_heads_alone(kv_heads):
    config = grouped(kv_heads, position="rope")
    model, tokens = Transformer(config, seed=3).eval(), torch.arange(20).view(2, 10)
    cache = KVCache(config, 2, 10)
    assert cache.view(0, 10)[0].shape == (2, kv_heads, 10, 4)
    chunks = [model(tokens[:, a:b], cache=cache) for a, b in ((0, 4), (4, 5), (5, 10))]
    assert torch.allclose(torch.cat(chunks, dim=1), model(tokens), rtol=0, atol=1e-5)


PACKED = {
    "gpt2": CONFIG,
    "grouped": grouped(2, position="rope"),
    "deepseek": ModelConfig.preset("deepseek-tiny", vocab_size=29, n_layers=2, n_mtp_layers=0),
}


@pytest.mark.parametrize("config", PACKED.values(), ids=PACKED)
def test_packed_documents_equal_each_alone_in_outputs_and_gradients(config):
    model = Transformer(config, seed=3).double()
    tokens = torch.randint(29, (1, 12), generator=torch.Generator().manual_seed(1))
    doc_ids = torch.tensor([[0] * 5 + [1] * 7])
    positions = torch.tensor([[*range(5), *range(7)]])
    target = torch.randn(1, 12, 29, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weights = [p for p in model.parameters() if p.requires_grad]
    together = model(tokens, positions=positions, doc_ids=doc_ids)
    alone = torch.cat((model(tokens[:, :5]), model(tokens[:, 5:])), dim=1)
    assert torch.allclose(together, alone, rtol=0, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad((together * target).sum(), weights, allow_unused=True),
        torch.autograd.grad((alone * target).sum(), weights, allow_unused=True),
        strict=True,
    ):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b, rtol=0, atol=1e-10)
