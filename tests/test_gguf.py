"""GGUF files, judged by transformers' reader (gpt2, llama) and by the gguf package's table (deepseek2)."""

import json
import warnings

import pytest
import torch

from gptrs import Tokenizer
from gptrs.exchange.gguf import export_gguf
from gptrs.exchange.gguf_read import import_gguf, import_gguf_tokenizer
from gptrs.model import ModelConfig
from test_exchange import LATENT, MODELS, V2, V3, YARN, random_model, tokens

gguf = pytest.importorskip("gguf")


def test_a_path_that_no_file_can_have_is_named_before_the_work(tmp_path):
    model = random_model(MODELS["gpt2"], torch.float32)
    with pytest.raises(FileNotFoundError, match=f"in a folder that exists, got {tmp_path}/none/x.gguf; hint: mkdir -p"):
        export_gguf(model, tmp_path / "none" / "x.gguf")
    (tmp_path / "x.gguf").mkdir()
    with pytest.raises(IsADirectoryError, match=f"expected a file, got the folder {tmp_path}/x.gguf"):
        export_gguf(model, tmp_path / "x.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]


@pytest.mark.parametrize("name", ["gpt2", "gpt2 untied", "llama", "llama mqa tied"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("F32", 1e-5), ("F16", 0.02)])
def test_transformers_reader_gives_the_same_logits(tmp_path, gpt2_like, name, dtype, tolerance):
    from transformers import AutoModelForCausalLM

    sizes = MODELS[name] | {"vocab_size": gpt2_like.vocab_size}
    # of gpt2 that reader takes neither the context nor the width of the feed-forward part: GPT-2's own
    sizes |= {"max_seq_len": 1024, "inter_dim": 192} if "gpt2" in name else {}
    ours = random_model(sizes, torch.float32)
    export_gguf(ours, tmp_path / "model.gguf", tokenizer=gpt2_like, dtype=dtype)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32, attn_implementation="eager"
    )
    x = tokens()
    assert (ours(x) - theirs(x).logits).abs().max() < tolerance


def test_transformers_reader_gives_the_same_ids(tmp_path, gpt2_like):
    from transformers import AutoTokenizer

    sizes = MODELS["llama"] | {"vocab_size": gpt2_like.vocab_size}
    export_gguf(random_model(sizes, torch.float32), tmp_path / "model.gguf", tokenizer=gpt2_like)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    text = "import os, caf\u00e9 \U0001f600 <|endoftext|> 123"
    ids = theirs(text, add_special_tokens=False)["input_ids"]
    assert ids == gpt2_like.encode(text, allowed_special="all")


def expected_shapes(config):
    """Shapes of a deepseek2 file in numpy's order, from the sizes."""
    H, R, r, C = config.n_heads, config.kv_lora_rank, config.qk_rope_head_dim, config.dim
    nope, v, m, E = config.qk_nope_head_dim, config.v_head_dim, config.moe_inter_dim, config.n_routed_experts
    shapes = {"token_embd.weight": (config.vocab_size, C), "output_norm.weight": (C,)}
    shapes["output.weight"] = (config.vocab_size, C)
    for layer in range(config.n_layers):
        block = {
            "attn_norm.weight": (C,), "ffn_norm.weight": (C,), "attn_output.weight": (C, H * v),
            "attn_kv_a_mqa.weight": (R + r, C), "attn_kv_a_norm.weight": (R,), "attn_k_b.weight": (H, R, nope),
            "attn_v_b.weight": (H, v, R),
        }  # fmt: skip
        q = config.q_lora_rank
        rows = H * (nope + r)
        block |= (
            {"attn_q_a.weight": (q, C), "attn_q_a_norm.weight": (q,), "attn_q_b.weight": (rows, q)}
            if q
            else {"attn_q.weight": (rows, C)}
        )
        if config.has_experts(layer):
            shared = config.n_shared_experts * m
            block |= {
                "ffn_gate_inp.weight": (E, C), "ffn_gate_exps.weight": (E, m, C), "ffn_up_exps.weight": (E, m, C),
                "ffn_down_exps.weight": (E, C, m), "ffn_gate_shexp.weight": (shared, C),
                "ffn_up_shexp.weight": (shared, C), "ffn_down_shexp.weight": (C, shared),
            }  # fmt: skip
            block |= {"exp_probs_b.bias": (E,)} if config.score_func == "sigmoid" else {}
        else:
            inter = config.inter_dim
            block |= {"ffn_gate.weight": (inter, C), "ffn_up.weight": (inter, C), "ffn_down.weight": (C, inter)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    return shapes


@pytest.mark.parametrize("sizes", [V3, V3 | {"q_lora_rank": 16} | YARN, V2 | YARN, LATENT])
def test_deepseek2_has_the_tensors_of_the_table(tmp_path, sizes):
    ours = random_model(sizes, torch.float32)
    export_gguf(ours, tmp_path / "model.gguf")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    shapes = {tensor.name: tuple(int(n) for n in reversed(tensor.shape)) for tensor in reader.tensors}
    assert shapes == expected_shapes(ours.config)
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.DEEPSEEK2, ours.config.n_layers)
    allowed = {names[1] for names in known.mapping.values()}
    assert {name.rsplit(".", 1)[0] for name in shapes} <= allowed

    data = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    for layer, block in enumerate(ours.layers):
        latent = torch.randn(5, ours.config.kv_lora_rank, generator=torch.Generator().manual_seed(layer))
        up = block.attn.kv_up(latent).view(5, ours.config.n_heads, -1)  # (5, H, nope + v)
        keys = torch.einsum("sr,hrn->shn", latent, data[f"blk.{layer}.attn_k_b.weight"])
        values = torch.einsum("sr,hvr->shv", latent, data[f"blk.{layer}.attn_v_b.weight"])
        assert (torch.cat((keys, values), dim=-1) - up).abs().max() < 1e-5


def test_deepseek2_says_its_sizes(tmp_path):
    config = ModelConfig(**V3 | {"q_lora_rank": 16} | YARN)
    export_gguf(random_model(V3 | {"q_lora_rank": 16} | YARN, torch.float32), tmp_path / "model.gguf")
    fields = {
        name.removeprefix("deepseek2."): field.contents()
        for name, field in gguf.GGUFReader(tmp_path / "model.gguf").fields.items()
        if name.startswith("deepseek2.")
    }
    numbers = {name: fields.pop(name) for name in list(fields) if isinstance(fields[name], float)}
    assert fields == {
        "vocab_size": 61, "context_length": 128, "embedding_length": 48, "block_count": 3, "feed_forward_length": 64,
        "attention.head_count": 4, "attention.head_count_kv": 1, "rope.dimension_count": 8,
        "attention.q_lora_rank": 16, "attention.kv_lora_rank": 24, "attention.key_length": 32,
        "attention.value_length": 24, "attention.key_length_mla": 20, "attention.value_length_mla": 10,
        "leading_dense_block_count": 1, "expert_count": 8, "expert_used_count": 3, "expert_shared_count": 2,
        "expert_feed_forward_length": 20, "expert_weights_norm": True, "expert_gating_func": 2,
        "expert_group_count": 4, "expert_group_used_count": 2, "rope.scaling.type": "yarn",
        "rope.scaling.original_context_length": 16,
    }  # fmt: skip
    assert numbers == pytest.approx(
        {
            "attention.layer_norm_rms_epsilon": config.norm_eps, "rope.freq_base": 10_000.0,
            "expert_weights_scale": 2.5, "rope.scaling.factor": 8.0, "rope.scaling.yarn_log_multiplier": 0.08,
        }
    )  # fmt: skip


def test_integers_in_fields_of_numbers_are_written_as_floats(tmp_path):
    model = random_model(V3 | {"q_lora_rank": 16, "rope_theta": 10_000, "route_scale": 16}, torch.float32)
    fields = gguf.GGUFReader(export_gguf(model, tmp_path / "model.gguf")).fields
    for key in ("rope.freq_base", "expert_weights_scale"):  # llama.cpp refuses another type
        assert fields[f"deepseek2.{key}"].types == [gguf.GGUFValueType.FLOAT32], key


@pytest.mark.parametrize(("dtype", "largest"), [("F32", torch.inf), ("F32", torch.nan), ("F16", 1e5), ("Q8_0", 1e7)])
def test_numbers_that_a_type_cannot_hold_are_refused(tmp_path, dtype, largest):
    ours = random_model(MODELS["llama"] | {"dim": 64}, torch.float32)
    with torch.no_grad():
        ours.layers[1].ffn.down.weight[3, 5] = -largest
    name = r"blk\.1\.ffn_down\.weight"
    with pytest.raises(ValueError, match=rf"expected numbers in {name} that {dtype} can hold, got nan or"):
        export_gguf(ours, tmp_path / "model.gguf", dtype=dtype)
    assert not list(tmp_path.iterdir())


def test_eight_bits_are_close(tmp_path):
    ours = random_model(MODELS["llama"] | {"dim": 64, "inter_dim": 96}, torch.float32)
    export_gguf(ours, tmp_path / "model.gguf", dtype="Q8_0")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    tensor = tensors["blk.0.ffn_down.weight"]
    assert tensor.tensor_type == gguf.GGMLQuantizationType.Q8_0
    error = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type)) - ours.layers[0].ffn.down.weight
    assert 0 < error.abs().max() < ours.layers[0].ffn.down.weight.abs().max() / 127
    assert tensors["output_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (V3 | {"n_mtp_layers": 1}, "a GGUF file of deepseek2 has no further-token modules, got 1"),
        (MODELS["llama biased"], "a GGUF file of llama has no biases"),
        (MODELS["llama yarn"], r"a GGUF file of llama has no stretched context \(rope_factor\)"),
        (MODELS["gpt2"] | {"position": "sinusoidal"}, "transformers has no such model"),
    ],
)
def test_what_the_format_does_not_have_is_refused_by_name(tmp_path, sizes, message):
    with pytest.raises(ValueError, match=message):
        export_gguf(random_model(sizes, torch.float32), tmp_path / "model.gguf")
    assert not any(tmp_path.iterdir())


def test_groups_that_count_as_their_best_are_told_of(tmp_path):
    """llama.cpp, llama-graph.cpp, build_moe_ffn: the sum of the two best of a group, whatever the scores are."""
    with pytest.warns(UserWarning, match=r"llama\.cpp ranks groups of experts by their best two"):
        export_gguf(random_model(V2, torch.float32), tmp_path / "v2.gguf")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_gguf(random_model(V3, torch.float32), tmp_path / "v3.gguf")


@pytest.mark.parametrize("groups", [{"n_limited_groups": 4}, {"n_expert_groups": 8, "n_limited_groups": 5}])
def test_groups_that_bound_no_choice_are_left_out(tmp_path, groups):
    """llama.cpp stops at as many groups as may be chosen from, and at groups of one expert."""
    ours = random_model(V2 | groups, torch.float32)
    path = export_gguf(ours, tmp_path / "model.gguf")
    assert not [name for name in gguf.GGUFReader(path).fields if "expert_group" in name]
    assert torch.equal(import_gguf(path)(tokens()), ours(tokens()))


def test_ids_without_a_token_are_unused_ones(tmp_path, gpt2_like):
    n = gpt2_like.vocab_size
    file = json.loads(gpt2_like.to_json())
    file["added_tokens"].append(file["added_tokens"][0] | {"id": n + 2, "content": "<tool>"})
    file["model"]["vocab"]["<tool>"] = n + 2  # elsewhere Hugging Face would give it the next number
    holed = Tokenizer.from_json(json.dumps(file))
    for tokenizer, unused in ((gpt2_like, [n, n + 1, n + 2]), (holed, [n, n + 1])):
        model = random_model(MODELS["gpt2"] | {"vocab_size": n + 3}, torch.float32)
        path = export_gguf(model, tmp_path / "model.gguf", tokenizer=tokenizer)
        fields = gguf.GGUFReader(path).fields
        texts, types = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type"))
        assert [i for i, kind in enumerate(types) if kind == gguf.TokenType.UNUSED] == unused
        assert [texts[i] for i in unused] == [f"[PAD{i}]" for i in unused]
        assert import_gguf_tokenizer(path) == tokenizer


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path, gpt2_like, cl100k_like):
    with pytest.raises(ValueError, match=r"expected the tokenizer of the model, got one of \d+ ids and a model of 61"):
        export_gguf(random_model(MODELS["gpt2"], torch.float32), tmp_path / "model.gguf", tokenizer=gpt2_like)
    sizes = MODELS["gpt2"] | {"vocab_size": cl100k_like.vocab_size}
    with pytest.raises(ValueError, match=r"expected a pattern of gpt2, .* got 'cl100k_base'"):
        export_gguf(random_model(sizes, torch.float32), tmp_path / "model.gguf", tokenizer=cl100k_like)
    with pytest.raises(ValueError, match="cannot be stored as Q8_0"):
        export_gguf(random_model(MODELS["gpt2"], torch.float32), tmp_path / "model.gguf", dtype="Q8_0")
    assert not any(tmp_path.iterdir())
