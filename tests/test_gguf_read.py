"""GGUF files read back: the model that was written, quantised numbers as the gguf package has them, lies refused."""

import struct
import warnings

import numpy as np
import pytest
import torch

from gptrs import Tokenizer
from gptrs.cli_model import open_model
from gptrs.exchange.gguf import export_gguf
from test_exchange import MODELS, V2, V3, YARN, random_model, tokens

gguf = pytest.importorskip("gguf")
from gptrs.exchange import gguf_read  # noqa: E402
from gptrs.exchange.gguf_read import import_gguf, import_gguf_tokenizer  # noqa: E402

SIZES = {name: sizes for name, sizes in MODELS.items() if name not in ("llama yarn", "llama biased")} | {
    "v3 its own yarn": V3 | YARN | {"rope_beta_fast": 1.5, "rope_beta_slow": 0.5},
    "v2 one group of two": V2 | {"n_expert_groups": 2, "n_limited_groups": 1},
}
SIZES = {name: sizes | {"init_std": 0.02} for name, sizes in SIZES.items() if "n_mtp_layers" not in sizes}
WIDE = MODELS["llama"] | {"dim": 256, "inter_dim": 256, "n_layers": 1, "init_std": 0.02}


def changed(source, target, keys=None, tensors=None):
    """Writes a file again with other keys and tensors: None leaves one out, (array, type) is stored as it is."""
    reader, keys, tensors = gguf.GGUFReader(source), dict(keys or {}), dict(tensors or {})
    architecture = keys.pop("general.architecture", reader.fields["general.architecture"].contents())
    writer = gguf.GGUFWriter(target, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture" or name in keys:
            continue
        sub_type = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=sub_type)
    adders = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    for name, value in keys.items():
        if value is not None:
            adders.get(type(value), writer.add_array)(name, value)
    stored = {tensor.name: (tensor.data, tensor.tensor_type) for tensor in reader.tensors} | tensors
    for name, pair in stored.items():
        if pair is not None:
            writer.add_tensor(name, np.ascontiguousarray(pair[0]), raw_dtype=pair[1])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.fixture
def small(tmp_path):
    """A llama's file."""
    return export_gguf(random_model(SIZES["llama"], torch.float32), tmp_path / "small.gguf")


@pytest.mark.parametrize("name", SIZES)
def test_a_model_comes_back_to_the_bit(tmp_path, name):
    ours = random_model(SIZES[name], torch.float32)
    again = import_gguf(export_gguf(ours, tmp_path / "model.gguf"))
    assert again.config == ours.config
    for (mine, a), (other, b) in zip(ours.named_parameters(), again.named_parameters(), strict=True):
        assert (mine, a.dtype, a.requires_grad) == (other, b.dtype, b.requires_grad)
        assert torch.equal(a, b), mine
    assert torch.equal(ours(tokens()), again(tokens()))


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_precision_is_read_and_a_type_is_taken(tmp_path, dtype):
    half = {"F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    ours = random_model(SIZES["v3"], torch.float32)
    path = export_gguf(ours, tmp_path / "model.gguf", dtype=dtype)
    again = import_gguf(path, dtype=torch.float64)
    assert torch.equal(again.layers[1].ffn.experts.up, ours.layers[1].ffn.experts.up.to(half).double())
    assert torch.equal(again.norm.weight, ours.norm.weight.double())
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(parameter if parameter.ndim == 1 else parameter.to(half))
    ours.layers[1].ffn.router.weight = again.layers[1].ffn.router.weight  # stays in float32
    ours.layers[2].ffn.router.weight = again.layers[2].ffn.router.weight
    assert (ours.double()(tokens()) - again(tokens())).abs().max() < 1e-6


def test_numbers_that_a_type_cannot_hold_are_refused(tmp_path):
    ours = random_model(SIZES["llama"], torch.float32)
    with torch.no_grad():
        ours.layers[1].ffn.down.weight[3, 5] = 1e5
    path = export_gguf(ours, tmp_path / "model.gguf")
    with pytest.raises(ValueError, match=r"model\.gguf: expected numbers in blk\.1\.ffn_down\.weight that float16 can"):
        import_gguf(path, dtype=torch.float16)


@pytest.mark.parametrize("has_keys_of_old_files", [False, True])
def test_a_joined_kv_up_is_read(tmp_path, has_keys_of_old_files):
    ours = random_model(SIZES["v2"], torch.float32)
    config, path = ours.config, export_gguf(ours, tmp_path / "model.gguf")
    keys = {}
    if has_keys_of_old_files:
        at = "deepseek2.attention."
        keys = {f"{at}key_length_mla": None, f"{at}value_length_mla": None, f"{at}key_length": config.head_dim}
        keys |= {f"{at}value_length": config.v_head_dim, f"{at}head_count_kv": config.n_heads}
        keys |= {"deepseek2.expert_gating_func": None, "deepseek2.expert_weights_norm": None}
    tensors = {}
    for layer, block in enumerate(ours.layers):
        tensors |= {f"blk.{layer}.attn_k_b.weight": None, f"blk.{layer}.attn_v_b.weight": None}
        up = block.attn.kv_up.weight.detach().numpy()
        tensors[f"blk.{layer}.attn_kv_b.weight"] = (up, gguf.GGMLQuantizationType.F32)
    again = import_gguf(changed(path, tmp_path / "joined.gguf", keys, tensors))
    assert again.config == config
    assert torch.equal(ours(tokens()), again(tokens()))


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_1", "Q4_0", "MXFP4"])
def test_quantised_numbers_are_multiplied_out(tmp_path, kind):
    ours = random_model(WIDE, torch.float32)
    path, stored = export_gguf(ours, tmp_path / "model.gguf"), gguf.GGMLQuantizationType[kind]
    matrices = {t.name: t.data for t in gguf.GGUFReader(path).tensors if len(t.shape) > 1}
    quantised = {name: gguf.quants.quantize(data, stored) for name, data in matrices.items()}
    again = import_gguf(changed(path, tmp_path / "q.gguf", tensors={n: (q, stored) for n, q in quantised.items()}))
    expected = {name: torch.from_numpy(gguf.quants.dequantize(q, stored)) for name, q in quantised.items()}
    qkv = torch.cat([expected[f"blk.0.attn_{part}.weight"] for part in "qkv"])
    assert torch.equal(again.layers[0].attn.qkv.weight, qkv)
    assert torch.equal(again.layers[0].ffn.down.weight, expected["blk.0.ffn_down.weight"])
    error = qkv - ours.layers[0].attn.qkv.weight
    logits, exact = again(tokens()), ours(tokens())
    relative = (error.std() / ours.layers[0].attn.qkv.weight.std()).item()
    assert relative < (logits - exact).std() / exact.std() < 4 * relative  # one product's error, and those of four


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"])
def test_blocks_of_256_are_multiplied_out(tmp_path, kind):
    """The package does not make these: random blocks with scales that are numbers."""
    path, stored = (
        export_gguf(random_model(WIDE, torch.float32), tmp_path / "model.gguf"),
        gguf.GGMLQuantizationType[kind],
    )
    n_bytes = gguf.GGML_QUANT_SIZES[stored][1]
    blocks = np.random.default_rng(3).integers(0, 256, (256, n_bytes), np.uint8)
    scale = np.frombuffer(np.array([0.01, 0.02], np.float16).tobytes(), np.uint8)
    starts = {"Q2_K": (n_bytes - 4, 4), "Q3_K": (n_bytes - 2, 2), "Q6_K": (n_bytes - 2, 2), "IQ4_XS": (0, 2)}
    at, width = starts.get(kind, (0, 4))
    blocks[:, at : at + width] = scale[:width]
    again = import_gguf(changed(path, tmp_path / "q.gguf", tensors={"blk.0.ffn_down.weight": (blocks, stored)}))
    expected = torch.from_numpy(gguf.quants.dequantize(blocks, stored))
    assert expected.std() > 0.01
    assert torch.equal(again.layers[0].ffn.down.weight, expected)


TEXT = "import os, caf\u00e9 \U0001f600 12345 it's\n\n  <|endoftext|> x<tool>y"


@pytest.mark.parametrize("pattern", ["gpt2", "llama3", "qwen2", "deepseek-v3", "o200k_base"])
def test_the_tokenizer_comes_back(tmp_path, stdlib_files, pattern):
    import json

    from gptrs import Tokenizer

    texts = [path.read_bytes() for path in stdlib_files[:5]]
    trained = json.loads(Tokenizer.train_from_iterator(texts, 500, pattern=pattern).to_json())
    user = trained["added_tokens"][0] | {"id": 500, "content": "<tool>", "special": False}
    trained["added_tokens"].append(user)
    ours = Tokenizer.from_json(json.dumps(trained))
    model = random_model(SIZES["gpt2"] | {"vocab_size": 501}, torch.float32)
    again = import_gguf_tokenizer(export_gguf(model, tmp_path / "model.gguf", tokenizer=ours))
    assert again is not None
    assert again.pattern == pattern
    assert again == ours
    assert again.core.added_tokens == ours.core.added_tokens
    assert again.encode(TEXT, allowed_special="all") == ours.encode(TEXT, allowed_special="all")


def test_unused_ids_have_no_token(tmp_path, gpt2_like):
    n = gpt2_like.vocab_size
    model = random_model(SIZES["gpt2"] | {"vocab_size": n}, torch.float32)
    path = export_gguf(model, tmp_path / "model.gguf", tokenizer=gpt2_like)
    fields = gguf.GGUFReader(path).fields
    keys = {f"tokenizer.ggml.{name}": fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type")}
    keys["tokenizer.ggml.tokens"] += ["[PAD0]", "[PAD1]"]
    keys["tokenizer.ggml.token_type"] += [5, 5]
    again = import_gguf_tokenizer(changed(path, tmp_path / "padded.gguf", keys))
    assert again == gpt2_like
    keys["tokenizer.ggml.token_type"].pop()
    with pytest.raises(ValueError, match=rf"odd\.gguf: tokenizer.ggml: expected {n + 2:,} types in .*, got {n + 1:,}"):
        import_gguf_tokenizer(changed(path, tmp_path / "odd.gguf", keys))
    keys = {"tokenizer.ggml.tokens": ["a"] * n}
    with pytest.raises(ValueError, match=r"expected different texts in tokenizer.ggml.tokens"):
        import_gguf_tokenizer(changed(path, tmp_path / "odd.gguf", keys))
    with pytest.raises(ValueError, match=r"tokenizer.ggml: .*merge 0"):
        import_gguf_tokenizer(changed(path, tmp_path / "odd.gguf", {"tokenizer.ggml.merges": ["qq zz"]}))
    with pytest.raises(ValueError, match=r"expected the key tokenizer.ggml.merges, found none"):
        import_gguf_tokenizer(changed(path, tmp_path / "odd.gguf", {"tokenizer.ggml.merges": None}))
    with pytest.raises(ValueError, match=r"expected a list of str in tokenizer.ggml.merges, got 7"):
        import_gguf_tokenizer(changed(path, tmp_path / "odd.gguf", {"tokenizer.ggml.merges": [7]}))


def test_a_vocabulary_of_bytes_has_no_merges_and_comes_back(tmp_path):
    tok = Tokenizer.train_from_iterator(["a true friend"], 257, special_tokens=["<|endoftext|>"])
    model = random_model(MODELS["gpt2"] | {"vocab_size": 257}, torch.float32)
    with pytest.warns(UserWarning, match="llama.cpp reads no tokenizer without merges"):
        path = export_gguf(model, tmp_path / "model.gguf", tokenizer=tok)
    assert import_gguf_tokenizer(path) == tok


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tokenizer.ggml.model": "llama"}, "got tokenizer.ggml.model='llama'"),
        ({"tokenizer.ggml.model": "gpt2"}, "got tokenizer.ggml.pre='default'"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "tekken"}, "got tokenizer.ggml.pre='tekken'"),
    ],
)
def test_another_kind_of_tokenizer_is_left_out_and_said(tmp_path, small, keys, message):
    path = changed(small, tmp_path / "other.gguf", keys)
    with pytest.warns(UserWarning, match=f"its tokenizer is left out: expected 'gpt2' .*, {message}"):
        assert import_gguf_tokenizer(path) is None
    assert import_gguf(path).config.vocab_size == 61
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert import_gguf_tokenizer(small) is None


def test_keys_that_many_files_lack_have_their_usual_values(tmp_path):
    ours = random_model(SIZES["llama"] | {"n_kv_heads": 0}, torch.float32)
    lacking = ("vocab_size", "rope.freq_base", "attention.head_count_kv", "rope.dimension_count")
    path = export_gguf(ours, tmp_path / "model.gguf")
    again = import_gguf(changed(path, tmp_path / "few.gguf", {f"llama.{key}": None for key in lacking}))
    assert again.config == ours.config
    assert torch.equal(ours(tokens()), again(tokens()))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"general.architecture": "qwen2"}, "expected general.architecture of gpt2, llama, deepseek2, got 'qwen2'"),
        ({"llama.block_count": None}, "expected the key llama.block_count, found none"),
        ({"llama.block_count": "3"}, "expected llama.block_count of the kind int, got '3'"),
        ({"llama.block_count": [3, 3]}, r"expected llama.block_count of the kind int, got \[3, 3\]"),
        ({"llama.block_count": 16_000}, "expected tensors of 16,000 layers, got 30 in all"),
        ({"llama.block_count": 4_000_000_000}, "the sizes of llama do not fit: n_layers must be at most 16,384"),
        ({"llama.attention.head_count": 0}, "n_heads must be an integer of at least 1, got 0"),
        ({"llama.attention.head_count": 5}, r"n_heads \(5\) must divide dim"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "norm_eps must be a positive number, got nan"),
        (
            {"llama.embedding_length": 96, "llama.rope.dimension_count": 24},
            r"expected token_embd.weight of shape \[61, 96\], got \[61, 48\]",
        ),
        ({"llama.context_length": 0}, "max_seq_len must be an integer of at least 1"),
        ({"llama.vocab_size": 62}, r"expected token_embd.weight of shape \[62, 48\], got \[61, 48\]"),
        ({"llama.rope.dimension_count": 6}, "expected llama.rope.dimension_count=12, got 6"),
        ({"llama.rope.scaling.type": "linear"}, "expected llama.rope.scaling.type='none', got 'linear'"),
        ({"llama.expert_count": 8}, "expected llama.expert_count=0, got 8"),
        ({"llama.attention.key_length": 32}, "expected llama.attention.key_length=12, got 32"),
        ({"llama.logit_scale": 2.5}, "expected keys of llama that are known, got llama.logit_scale=2.5"),
        ({"split.count": 3}, "expected a model in one file, got split.count=3; hint: join them"),
    ],
)
def test_keys_that_do_not_fit_are_refused_by_name(tmp_path, small, keys, message):
    path = changed(small, tmp_path / "odd.gguf", keys)
    with pytest.raises(ValueError, match=rf"odd\.gguf: .*{message}"):
        import_gguf(path)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"expert_gating_func": 3}, "expected deepseek2.expert_gating_func of 1 or 2, got 3"),
        ({"attention.key_length": 20}, "expected deepseek2.attention.key_length=32, got 20"),
        ({"attention.head_count_kv": 2}, "expected deepseek2.attention.head_count_kv=1 or 4, got 2"),
        ({"nextn_predict_layers": 1}, "expected deepseek2.nextn_predict_layers=0, got 1"),
        ({"rope.scaling.yarn_log_multiplier": None}, "expected the key deepseek2.rope.scaling.yarn_log_multiplier"),
        ({"rope.scaling.type": "longrope"}, "expected deepseek2.rope.scaling.type='yarn' or 'none', got 'longrope'"),
        ({"expert_count": 9}, r"n_expert_groups \(4\) must divide n_routed_experts \(9\)"),
        ({"attention.key_length_mla": 4}, "qk_nope_head_dim must be an integer of at least 0, got -4"),
        ({"attention.kv_lora_rank": 0}, "needs latent attention"),
    ],
)
def test_keys_of_deepseek2_that_do_not_fit_are_refused(tmp_path, keys, message):
    path = export_gguf(random_model(V3 | YARN, torch.float32), tmp_path / "model.gguf")
    with pytest.raises(ValueError, match=message):
        import_gguf(changed(path, tmp_path / "odd.gguf", {f"deepseek2.{key}": value for key, value in keys.items()}))


F32 = gguf.GGMLQuantizationType.F32


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"blk.1.attn_k.weight": None}, "expected 30 tensors, missing blk.1.attn_k.weight"),
        ({"token_embd.weight": None}, "expected 30 tensors, missing token_embd.weight"),
        (
            {"rope_freqs.weight": (np.ones(6, np.float32), F32)},
            "expected 30 tensors, rope_freqs.weight left over",
        ),
        (
            {"blk.2.ffn_up.weight": (np.ones((48, 64), np.float32), F32)},
            r"expected blk.2.ffn_up.weight of shape \[64, 48\], got \[48, 64\]",
        ),
        (
            {"blk.0.attn_norm.weight": (np.ones((48, 1), np.float32), F32)},
            r"expected blk.0.attn_norm.weight of shape \[48\], got \[48, 1\]",
        ),
        (
            {"output_norm.weight": (np.full(48, np.nan, np.float32), F32)},
            "expected finite numbers in output_norm.weight, got nan or infinity",
        ),
        (
            {"output_norm.weight": (np.ones(48, np.int32), gguf.GGMLQuantizationType.I32)},
            "expected output_norm.weight of a floating type, got I32",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(tmp_path, small, tensors, message):
    path = changed(small, tmp_path / "odd.gguf", tensors=tensors)
    with pytest.raises(ValueError, match=rf"odd\.gguf: {message}"):
        import_gguf(path)


def place_of(data, name):
    """Where a tensor's number of axes stands in a file's bytes."""
    return data.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)


def lying(data, name, axis=None, kind=None, offset=None, n_axes=None):
    out, at = bytearray(data), place_of(data, name)
    (axes,) = struct.unpack_from("<I", data, at)
    for value, form, where in (
        (n_axes, "<I", at), (axis, "<Q", at + 4), (kind, "<I", at + 4 + 8 * axes), (offset, "<Q", at + 8 + 8 * axes),
    ):  # fmt: skip
        if value is not None:
            struct.pack_into(form, out, where, value)
    return bytes(out)


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ({"axis": 2**40}, r"expected a whole GGUF file: data of blk.1.ffn_up.weight up to byte [\d,]{10,}, got"),
        ({"axis": 2**63}, "data of blk.1.ffn_up.weight up to byte"),
        ({"axis": 0}, "behind that before it"),
        ({"kind": 77}, "a known type of blk.1.ffn_up.weight, got 77"),
        ({"kind": 8}, r"blk.1.ffn_up.weight with rows of whole blocks of 32, got the sizes \[48, 64\]"),
        ({"kind": 1}, "behind that before it"),
        ({"offset": 0}, r"the data of blk.1.ffn_up.weight at byte [\d,]+, behind that before it, got"),
        ({"offset": 2**64 - 32}, "the data of blk.1.ffn_up.weight at byte"),
        ({"n_axes": 2**32 - 1}, "it was cut, or a length lies"),
        ({"n_axes": 5}, "expected a whole GGUF file: "),
    ],
)
def test_a_tensor_that_lies_about_its_data_is_refused(tmp_path, small, lie, message):
    path = tmp_path / "lie.gguf"
    path.write_bytes(lying(small.read_bytes(), b"blk.1.ffn_up.weight", **lie))
    with pytest.raises(ValueError, match=message) as error:
        import_gguf(path)
    assert "lie.gguf: " in str(error.value)


def test_what_is_no_gguf_file_is_refused(tmp_path, small):
    data, path = small.read_bytes(), tmp_path / "odd.gguf"
    for bad, message in (
        (b"", "expected a GGUF file, got one that begins with b''"),
        (b"PK\x03\x04" + data[4:], "expected a GGUF file, got one that begins with"),
        (data[:4], "expected version 2 or 3 of GGUF, got 0"),
        (data[:4] + struct.pack("<I", 1) + data[8:], "expected version 2 or 3 of GGUF, got 1"),
        (data[:4] + struct.pack(">I", 3) + data[8:], "got 50331648; hint: its bytes are in big-endian order"),
        (data[:8] + struct.pack("<Q", 2**40) + data[16:], "at most 65,536 tensors, got 1,099,511,627,776"),
        (data[:8] + struct.pack("<Q", 31) + data[16:], "expected a whole GGUF file: "),
        (data[:16] + struct.pack("<Q", 2**63) + data[24:], "at most 65,536 keys, got 9,223,372,036,854,775,808"),
        (data[:24] + struct.pack("<Q", 2**62) + data[32:], "it was cut, or a length lies"),
        (data[:16] + struct.pack("<Q", 0) + data[24:], "expected a whole GGUF file: "),
    ):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=message) as error:
            import_gguf(path)
        assert "odd.gguf: " in str(error.value)
    with pytest.raises(FileNotFoundError):
        import_gguf(tmp_path / "none.gguf")


def test_a_cut_file_is_refused_wherever_it_ends(tmp_path, small):
    data, path = small.read_bytes(), tmp_path / "cut.gguf"
    begin = min(tensor.data_offset for tensor in gguf.GGUFReader(small).tensors)
    ends = [*range(0, begin, 7), *range(begin, len(data) - 64, 9001), len(data) - 64]
    for end in ends:
        path.write_bytes(data[:end])
        with pytest.raises(ValueError, match=r"cut\.gguf: expected"):
            import_gguf(path)
    path.write_bytes(data[:begin])
    with pytest.raises(ValueError, match=r"data of token_embd.weight up to byte"):
        import_gguf(path)


def test_changed_bytes_of_a_header_never_do_more_than_a_value_error(tmp_path, small):
    """One byte at a time, half of them to 255: what is read is a model, what is not says which file."""
    data, path = small.read_bytes(), tmp_path / "changed.gguf"
    begin = min(tensor.data_offset for tensor in gguf.GGUFReader(small).tensors)
    random = np.random.default_rng(11)
    n_refused = 0
    for at in random.integers(0, begin, 200):
        out = bytearray(data)
        out[at] = 255 if random.integers(2) else random.integers(256)
        path.write_bytes(out)
        try:
            import_gguf(path)
        except ValueError as error:
            assert "changed.gguf" in str(error), error
            n_refused += 1
    assert n_refused > 100


def test_an_array_that_lies_about_its_length_takes_no_memory(tmp_path, small):
    import tracemalloc

    data = changed(small, tmp_path / "list.gguf", {"general.tags": ["a", "b"]}).read_bytes()
    at = data.index(b"general.tags") + len(b"general.tags") + 4
    path = tmp_path / "lie.gguf"
    for kind, count, message in ((8, 2**50, r"at most 1,048,576 texts behind"), (0, 2**50, "it was cut")):
        path.write_bytes(data[:at] + struct.pack("<IQ", kind, count) + data[at + 12 :])
        tracemalloc.start()
        with pytest.raises(ValueError, match=message):
            import_gguf(path)
        assert tracemalloc.get_traced_memory()[1] < len(data)
        tracemalloc.stop()
    path.write_bytes(data[:at] + struct.pack("<IQ", 9, 1) * 5000 + data[at:])
    with pytest.raises(ValueError, match=r"lie\.gguf: .*lists of numbers or texts behind .*, got one of lists"):
        import_gguf(path)


def test_a_machine_without_the_package_is_told_what_to_install(monkeypatch, small):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(ModuleNotFoundError, match="pip install gguf"):
        gguf_read.import_gguf(small)


def test_the_command_line_reads_a_file(tmp_path, warm_cli, gpt2_like):
    ours = random_model(SIZES["v3"] | {"vocab_size": gpt2_like.vocab_size}, torch.float32)
    path = export_gguf(ours, tmp_path / "model.gguf", tokenizer=gpt2_like)
    done = warm_cli("import", path, "--out", tmp_path / "run")
    n_params = sum(p.numel() for p in ours.parameters())
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path / 'run'}: {n_params:,} parameters\n", "")
    again, tokenizer = open_model(str(tmp_path / "run"), None, "cpu")
    assert again.config == ours.config
    assert torch.equal(ours(tokens()), again(tokens()))
    assert tokenizer == gpt2_like

    other = changed(path, tmp_path / "other.gguf", {"tokenizer.ggml.model": "llama"})
    done = warm_cli("import", other, "--out", tmp_path / "bare")
    assert done.returncode == 0
    assert "warning: " in done.stderr
    assert "its tokenizer is left out: expected 'gpt2'" in done.stderr
    assert "hint: name its tokenizer with --tokenizer" in done.stderr
