"""llama2.c's files: a small real model tells its story, a random one comes back, files that lie are refused."""

import struct

import numpy as np
import pytest
import torch

from gptrs.exchange.llama2c import import_llama2c
from gptrs.generate import generate
from gptrs.model import ModelConfig, Transformer

SIZES = {"dim": 16, "inter_dim": 24, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 29, "max_seq_len": 32}
STORY_BOS = 1


def written(model):
    """The bytes of a model, kind after kind."""
    config = model.config
    sizes = [config.dim, config.inter_dim, config.n_layers, config.n_heads, config.kv_heads, config.max_seq_len]
    sign = 1 if config.is_head_tied else -1
    header = struct.pack("<7i", *sizes[:5], sign * config.vocab_size, sizes[5])
    C, kv, m = config.dim, config.kv_heads * config.head_dim, config.inter_dim
    layers = list(model.layers)
    parts = [
        [model.embed.token.weight],
        [layer.attn_norm.weight for layer in layers],
        [layer.attn.qkv.weight[:C] for layer in layers],
        [layer.attn.qkv.weight[C : C + kv] for layer in layers],
        [layer.attn.qkv.weight[C + kv :] for layer in layers],
        [layer.attn.output.weight for layer in layers],
        [layer.ffn_norm.weight for layer in layers],
        [layer.ffn.up.weight[:m] for layer in layers],
        [layer.ffn.down.weight for layer in layers],
        [layer.ffn.up.weight[m:] for layer in layers],
        [model.norm.weight],
        [torch.zeros(config.max_seq_len, config.head_dim)],  # cosines and sines, which nobody reads
        [] if model.head is None else [model.head.weight],
    ]
    return header + b"".join(tensor.detach().numpy().tobytes() for part in parts for tensor in part)


@pytest.fixture(params=[True, False])
def model(request):
    config = ModelConfig(
        **SIZES, position="rope", norm="rms", feed_forward="swiglu", has_bias=False, is_head_tied=request.param
    )
    return Transformer(config, seed=4)


def test_a_model_comes_back(tmp_path, model):
    (tmp_path / "model.bin").write_bytes(written(model))
    again = import_llama2c(tmp_path / "model.bin")
    assert again.config == model.config
    for (name, a), (other, b) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(a, b), name


def test_files_that_lie_are_refused(tmp_path, model):
    path, whole = tmp_path / "model.bin", written(model)
    for data, message in (
        (whole[:20], "expected 7 sizes of llama2.c, got a file of 20 bytes"),
        (whole[:-4], f"expected {len(whole)} bytes of a model with these sizes, got {len(whole) - 4}"),
        (whole + b"\0\0\0\0", f"expected {len(whole)} bytes"),
        (b"24ka" + whole[4:], "expected llama2.c's first version, got a later one; hint: export it with --version 0"),
        (
            struct.pack("<i", -1) + whole[4:],
            "expected a dim from 1 to 16777216 in the header of a llama2.c model, got -1",
        ),
        (
            whole[:12] + struct.pack("<i", 7) + whole[16:],
            r"model\.bin: the sizes in the header of a llama2\.c model do not fit: n_heads \(7\) must divide dim",
        ),
        (whole[:40] + struct.pack("<f", np.nan) + whole[44:], "expected finite numbers, got nan"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            import_llama2c(path)


def pieces(path):
    """The texts of the ids of a llama2.c tokenizer file: longest length, then score, length and bytes of each.

    Ids 3 to 258 stand for single bytes, spelt <0x00> to <0xFF>.
    """
    data, at, texts = path.read_bytes(), 4, []
    while at < len(data):
        (n,) = struct.unpack_from("<i", data, at + 4)
        texts.append(bytes([len(texts) - 3]) if 3 <= len(texts) < 259 else data[at + 8 : at + 8 + n])
        at += 8 + n
    return texts


def test_the_small_real_model_tells_its_story(test_data):
    model = import_llama2c(test_data / "stories260K.bin")
    (ids,) = generate(model, [[STORY_BOS]], max_new_tokens=120, temperature=0.0)
    texts = pieces(test_data / "tok512.bin")
    story = b"".join(texts[token] for token in ids).decode().lstrip()
    published = (test_data / "stories260K.md").read_text("utf-8").split("-t 0.0\n")[1]
    assert len(story) > 250
    assert published.startswith(story)
