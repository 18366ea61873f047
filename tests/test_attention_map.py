"""Attention weights: those that the layers use, and what is said and drawn of them."""

import dataclasses
from pathlib import Path

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from gptrs import Tokenizer, attention_map
from gptrs.attention_map import attention_weights
from gptrs.cli import app
from gptrs.model import ModelConfig, Transformer
from gptrs.train import checkpoint

SIZES = {"vocab_size": 31, "max_seq_len": 16, "dim": 24, "n_layers": 2, "n_heads": 6, "inter_dim": 32, "init_std": 0.5}
ROPE = {"position": "rope", "norm": "rms", "has_bias": False}
LATENT = {"kv_lora_rank": 10, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5, "feed_forward": "swiglu"}
CONFIGS = {
    "multi-head": ModelConfig(**SIZES),
    "grouped-query": ModelConfig(**SIZES, **ROPE, n_kv_heads=2),
    "multi-query": ModelConfig(**SIZES, n_kv_heads=1),
    "latent": ModelConfig(**SIZES, **ROPE, **LATENT),
    "latent, compressed queries, yarn": ModelConfig(
        **SIZES, **ROPE, **LATENT, q_lora_rank=7, rope_factor=4.0, rope_original_len=8, rope_mscale=1.0
    ),
}


def values(attn, x, turns):
    """Of every query head, (B, H, T, v)."""
    if hasattr(attn, "kv_up"):
        return attn._keys_and_values(attn._latent(x, turns))[1]
    return attn._projected(x)[2].repeat_interleave(attn.n_heads // attn.kv_heads, dim=1)


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_times_values_are_the_layers_output(name: str):
    model = Transformer(CONFIGS[name], seed=2).double().eval()
    tokens = torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(0))
    seen = []
    for block in model.layers:
        block.attn.register_forward_hook(
            lambda attn, x, given, y: seen.append((attn, x[0], given, y)), with_kwargs=True
        )
    weights = attention_weights(model, tokens)
    assert len(weights) == len(seen) == 2
    for of_layer, (attn, x, given, y) in zip(weights, seen, strict=True):
        assert of_layer.shape == (2, 6, 9, 9)
        out = of_layer @ values(attn, x, given["turns"])
        assert torch.allclose(attn.output(out.transpose(1, 2).flatten(2)), y, rtol=0, atol=1e-10)
        assert torch.allclose(of_layer.sum(-1), torch.ones(2, 6, 9, dtype=torch.float64), rtol=0, atol=1e-12)
        assert of_layer.triu(1).count_nonzero() == 0
        assert float(of_layer[..., -1, :].std()) > 0.01  # not an even look, which many wrong formulas give as well


def test_the_model_is_left_as_it_was():
    model = Transformer(ModelConfig(**SIZES, dropout=0.5), seed=2).train()
    model.layers[1].eval()
    tokens = torch.arange(9)[None]
    first, second = attention_weights(model, tokens), attention_weights(model, tokens)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))  # no dropout
    assert model.training and model.layers[0].training and not model.layers[1].training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_heads_say_where_they_look():
    T = 6
    previous = torch.zeros(T, T).index_put((torch.arange(1, T), torch.arange(T - 1)), torch.ones(()))
    previous[0, 0] = 1.0
    first = torch.zeros(T, T)
    first[:, 0] = 1.0
    even = torch.ones(T, T).tril()
    even /= even.sum(-1, keepdim=True)
    found = attention_map.heads([torch.stack((previous, first, torch.eye(T), even))[None]])
    assert [(h.head, h.first, h.previous, h.own) for h in found[:3]] == [(0, 0, 1, 0), (1, 1, 0, 0), (2, 0, 0, 1)]
    assert [h.entropy for h in found] == pytest.approx([0, 0, 0, 1], abs=1e-6)
    mean = sum(1 / n for n in range(3, T + 1)) / (T - 2)
    assert found[3].first == found[3].previous == found[3].own == pytest.approx(mean)
    with pytest.raises(ValueError, match="at least 3 tokens"):
        attention_map.heads([torch.ones(1, 1, 2, 2)])


def test_many_heads_make_a_picture_of_bounded_size(tmp_path: Path):
    pytest.importorskip("matplotlib")
    attention_map.draw(tmp_path / "map.png", [torch.eye(20).expand(64, 20, 20)], [f" {i}$\n" for i in range(20)])
    width, height = (int.from_bytes((tmp_path / "map.png").read_bytes()[at : at + 4]) for at in (16, 20))
    assert 9_900 < width < 10_200 and 150 < height < 400, (width, height)


def test_command_draws_and_says_it(tmp_path: Path, corpus: Path):
    pytest.importorskip("matplotlib")
    tok = Tokenizer.train(corpus, 300)
    tok.save(tmp_path / "run" / "tokenizer.json")
    config = ModelConfig(**{**SIZES, "vocab_size": 300})
    model = Transformer(config)
    state = {"model": dataclasses.asdict(config)}
    checkpoint.save(tmp_path / "run" / "checkpoints", step=1, model=model, optimizer=None, state=state, keep=1)

    def command(*arguments: object) -> Result:
        words = ["attention", "--run", tmp_path / "run", *arguments]
        return CliRunner().invoke(app, [str(word) for word in words])  # in this process: torch is loaded

    done = command("a $b$\n", "--out", tmp_path / "map.png", "--layer", 1)
    assert done.exit_code == 0, done.output
    n_tokens = len(tok.encode("a $b$\n"))
    assert len(done.stdout.splitlines()) == 1 + 12 + 1
    assert done.stdout.endswith(f"map.png: 6 heads over {n_tokens} tokens\n")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    for arguments, says in (
        (("a b c", "--layer", 2), "--layer must be below n_layers (2), got 2"),
        (("a b c", "--out", tmp_path / "map.jpg"), "--out must be a .png file"),
        (("a",), "at least 3 tokens"),
        (("",), "expected a text of one token or more, got none"),
    ):
        error = command(*arguments).exception
        assert isinstance(error, ValueError) and says in str(error)
    undrawn = command("a b c", "--layer", 1)
    assert undrawn.exit_code == 2 and "--layer says which layer is drawn" in undrawn.output
