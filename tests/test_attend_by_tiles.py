"""Causal attention by tiles: at least as exact as torch's kernel, the same gradients, and taken where it should be."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from gptrs import _core
from gptrs.model import ModelConfig, matmul
from gptrs.model.attend import attend
from gptrs.model.attend_by_tiles import attend_by_tiles, attend_latents_by_tiles, goes_by_tiles
from gptrs.model.attention import Attention
from gptrs.model.mla import LatentAttention
from gptrs.model.rope import rotations

HAS_TILES = pytest.mark.skipif(not _core.can_multiply(), reason="this processor has no AMX")
# B, H, K, T, columns of heads' own keys, of the key that they share, and of values
SIZES = {
    "one": (1, 1, 1, 1, 3, 0, 2),
    "latent": (2, 4, 4, 130, 64, 32, 64),
    "plain": (2, 3, 3, 64, 32, 0, 32),
    "grouped": (1, 6, 2, 97, 40, 0, 40),
    "one kv head, shared key": (2, 4, 1, 70, 24, 9, 33),
}


@pytest.fixture(autouse=True)
def tiles_are_on() -> Iterator[None]:
    before = matmul.use_tiles(True)
    yield
    matmul.use_tiles(before)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(B: int, H: int, K: int, T: int, own: int, shared: int, V: int) -> list[Tensor]:
    """q, k, v, and the shared key if there is one; k and v are parts of one tensor, as layers make them."""
    q, up = draw(B, T, H, own + shared).transpose(1, 2), draw(B, T, K, own + V, seed=1).transpose(1, 2)
    k, v = torch.split(up, [own, V], dim=-1)
    return [q, k, v, *([draw(B, 1, T, shared, seed=2)] if shared else [])]


def with_gradients(given: list[Tensor], *, by: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The output, and gradients of q, k, v and key."""
    leaves = [one.detach().to(dtype).requires_grad_() for one in given]
    q, k, v, key = leaves if len(leaves) == 4 else (*leaves, None)
    scale = q.shape[-1] ** -0.5
    if by == "tiles":
        out = attend_by_tiles(q, k, v, key, scale)
    else:
        joined = k if key is None else torch.cat((k, key.expand(-1, k.shape[1], -1, -1)), dim=-1)
        padded = torch.nn.functional.pad(v, (0, q.shape[-1] - v.shape[-1]))
        grouped = k.shape[1] < q.shape[1]
        out = scaled_dot_product_attention(q, joined, padded, is_causal=True, scale=scale, enable_gqa=grouped)
        out = out[..., : v.shape[-1]]
    target = draw(*out.shape, seed=3).to(dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, target)]


def test_two_positions_by_hand() -> None:
    """The second position's scores are 0 and ln 3: it takes a quarter of the first value and three of the second."""
    q, k = torch.ones(1, 1, 2, 1), torch.tensor([0.0, 3.0]).log().nan_to_num(neginf=0.0).view(1, 1, 2, 1)
    v = torch.tensor([[4.0], [8.0]]).view(1, 1, 2, 1)
    torch.testing.assert_close(attend_by_tiles(q, k, v, None, 1.0).flatten(), torch.tensor([4.0, 7.0]))


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_errors_are_not_above_torchs(sizes: tuple[int, ...]) -> None:
    given = inputs(*sizes)
    factor = 2 if _core.can_multiply() else 10  # without tiles sums are taken one after the other
    exact = with_gradients(given, by="torch", dtype=torch.float64)
    ours, theirs = (with_gradients(given, by=by) for by in ("tiles", "torch"))
    for mine, other, right in zip(ours, theirs, exact, strict=True):
        assert mine.shape == right.shape
        error, allowed = ((found - right).abs().max() for found in (mine, other))
        assert error <= factor * allowed + 2.0**-22 * right.abs().max()


def test_a_later_position_changes_no_earlier_one() -> None:
    given = inputs(1, 2, 1, 100, 32, 8, 16)
    q, k, v, key = (one.clone() for one in given)
    before = attend_by_tiles(q, k, v, key, 0.2)
    for one in (q, k, v, key):
        one[:, :, 70:] += 1.0
    after = attend_by_tiles(q, k, v, key, 0.2)
    assert torch.equal(before[:, :, :70], after[:, :, :70])
    assert not torch.equal(before[:, :, 70:], after[:, :, 70:])


def test_how_inputs_lie_in_memory_changes_no_bit() -> None:
    given = inputs(2, 4, 2, 70, 24, 8, 32)
    spread = [torch.stack((one, one), dim=-1)[..., 0] for one in given]
    assert all(one.stride(-1) == 2 for one in spread)
    for other in ([one.contiguous() for one in given], spread):
        for a, b in zip(with_gradients(given, by="tiles"), with_gradients(other, by="tiles"), strict=True):
            assert torch.equal(a, b)
    q, k, v, key = (one.detach().requires_grad_() for one in given)
    d_k = torch.autograd.grad(attend_by_tiles(q, k, v, key, 0.2).sum(), k)[0]  # of a gradient without steps
    expected = torch.autograd.grad((attend_by_tiles(q, k, v, key, 0.2) * torch.ones(2, 4, 70, 32)).sum(), k)[0]
    assert torch.equal(d_k, expected)


@pytest.mark.parametrize("sizes", [SIZES["latent"], SIZES["grouped"]])
def test_compiled_equals_eager(sizes: tuple[int, ...]) -> None:
    q, k, v, *key = (one.requires_grad_() for one in inputs(*sizes))
    shared = key[0] if key else None

    def run(q: Tensor, k: Tensor, v: Tensor, key: Tensor | None) -> Tensor:
        return attend_by_tiles(q * 1.5, k, v, key, 0.1).transpose(1, 2).flatten(2) * 2.0

    eager, compiled = run(q, k, v, shared), torch.compile(run, fullgraph=True)(q, k, v, shared)
    assert torch.equal(eager, compiled)
    leaves = [q, k, v, *key]
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), leaves) for y in (eager, compiled)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-5)


@HAS_TILES
def test_operations_are_counted_as_torch_counts_them() -> None:
    given = [draw(2, 3, 80, 32, seed=seed).requires_grad_() for seed in range(3)]
    counts = []
    for is_on in (True, False):
        matmul.use_tiles(is_on)
        q, k, v = given
        with FlopCounterMode(display=False) as counter:
            attend(q, k, v, mask=None, is_causal=True, dropout=0.0, scale=1.0).sum().backward()
        counts.append(counter.get_total_flops())
        names = str(counter.get_flop_counts())
        assert ("gptrs.attention" in names) == is_on
    assert counts[0] == counts[1] > 0


@HAS_TILES
def test_what_is_not_for_tiles_goes_to_torch() -> None:
    q, k, v = (draw(1, 2, 64, 16, seed=seed) for seed in range(3))
    assert goes_by_tiles(q, k, v, None)
    assert not goes_by_tiles(q[:, :, :63], k[:, :, :63], v[:, :, :63], None), "short"
    assert not goes_by_tiles(q[:, :, -1:], k, v, None), "queries behind a cache"
    assert not goes_by_tiles(q.double(), k.double(), v.double(), None)
    with torch.autocast("cpu", torch.bfloat16):
        assert not goes_by_tiles(q, k, v, None)
    matmul.use_tiles(False)
    assert not goes_by_tiles(q, k, v, None)


@HAS_TILES
@pytest.mark.parametrize("kind", ["multi-head", "grouped", "latent"])
def test_layers_are_what_they_are_by_torchs_kernel(kind: str) -> None:
    rope = {"position": "rope", "norm": "rms", "feed_forward": "swiglu", "has_bias": False}
    sizes = {"vocab_size": 29, "max_seq_len": 128, "dim": 48, "n_layers": 1, "n_heads": 6, "inter_dim": 48}
    config = {
        "multi-head": ModelConfig(**sizes, **rope),  # type: ignore[arg-type]
        "grouped": ModelConfig(**sizes, **rope, n_kv_heads=2),  # type: ignore[arg-type]
        "latent": ModelConfig.preset("deepseek-tiny", vocab_size=29, n_layers=1),
    }[kind]
    layer = (LatentAttention if kind == "latent" else Attention)(config, 0)
    torch.manual_seed(0)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, turns = draw(2, 100, config.dim).requires_grad_(), rotations(config, torch.arange(100))
    found = []
    for is_on in (True, False):
        matmul.use_tiles(is_on)
        y = layer(x, turns=turns)
        found.append([y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()], allow_unused=True)])
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.parametrize("needs_up", [True, False], ids=["trained", "frozen"])
def test_keys_and_values_of_latents_are_those_of_the_product(needs_up: bool) -> None:
    B, H, T, R, own, shared, V = 2, 3, 70, 40, 24, 8, 20
    q, latent = draw(B, T, H, own + shared).transpose(1, 2), draw(B, T, R + shared, seed=1)
    narrow, key = latent[..., :R], latent[:, None, :, R:]
    up = draw(H * (own + V), R, seed=2) * 0.2
    found = []
    for is_made_again in (True, False):
        leaves = [one.detach().requires_grad_() for one in (q, narrow, key)]
        leaves.append(up.clone().requires_grad_(needs_up))
        if is_made_again:
            out = attend_latents_by_tiles(*leaves, 0.2)
        else:
            made = (leaves[1] @ leaves[3].T).view(B, T, H, -1).transpose(1, 2)
            out = attend_by_tiles(leaves[0], made[..., :own], made[..., own:], leaves[2], 0.2)
        wanted = leaves if needs_up else leaves[:3]
        found.append([out.detach(), *torch.autograd.grad(out, wanted, draw(*out.shape, seed=3))])
    for a, b in zip(*found, strict=True):
        assert a.shape == b.shape and (a - b).abs().max() <= 2e-6 * b.abs().max()


@HAS_TILES
def test_latents_are_kept_unless_somebody_looks_at_what_they_make() -> None:
    config = ModelConfig.preset("deepseek-tiny", vocab_size=29, n_layers=1)
    layer = LatentAttention(config, 0)
    torch.manual_seed(0)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, turns, seen = draw(2, 64, config.dim), rotations(config, torch.arange(64)), []
    hook = layer.kv_up.register_forward_hook(lambda *given: seen.append(given[2].shape))
    hooked = layer(x, turns=turns)
    assert seen == [(2, 64, config.n_heads * (config.qk_nope_head_dim + config.v_head_dim))]
    hook.remove()
    counts = []
    for is_on in (True, False):
        matmul.use_tiles(is_on)
        with FlopCounterMode(display=False) as counter:
            y = layer(x, turns=turns)
            y.sum().backward()
        torch.testing.assert_close(y, hooked, rtol=1e-5, atol=1e-5)
        counts.append(counter.get_total_flops())
        assert ("latent_attention" in str(counter.get_flop_counts())) == is_on
    # torch's kernel multiplies values that are filled up to the width of keys.
    width = config.qk_nope_head_dim + config.qk_rope_head_dim - config.v_head_dim
    assert counts[1] - counts[0] == 3 * 2 * 2 * config.n_heads * 64 * 64 * width
    assert len(seen) == 1


def test_shapes_that_do_not_fit_are_refused() -> None:
    q, k, v = (draw(1, 2, 8, 6, seed=seed) for seed in range(3))
    for given in ((q, k[..., :5], v, None), (q, k, v[:, :, :7], None), (q, k, v, draw(1, 1, 8, 2))):
        with pytest.raises(ValueError, match="expected q"):
            attend_by_tiles(*given, 1.0)
    with pytest.raises(ValueError, match="finite scale"):
        attend_by_tiles(q, k, v, None, float("nan"))
