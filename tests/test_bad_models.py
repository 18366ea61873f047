"""Directories of models that lie, do not fit, or hold what we do not have: one clear error with a name in it."""

import json
import struct

import pytest
import safetensors.torch
import torch

from gptrs.exchange import hf_config
from gptrs.exchange.hf import export_hf, import_hf
from gptrs.model import ModelConfig
from test_exchange import MODELS, random_model

YARN_KEYS = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16}
SCALES = "lm_head.weight_scale_inv"
HEADER = json.dumps({"model.norm.weight": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 4]}}).encode()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["MistralForCausalLM"]},
            r"expected one of GPT2LMHeadModel, .*, got architectures=\['Mistral",
        ),
        ({"architectures": None}, "got architectures=None; hint: a file of GPT-2"),
        ({"hidden_act": "gelu"}, "LlamaForCausalLM: expected hidden_act='silu', got 'gelu'"),
        ({"head_dim": 99}, "expected head_dim=None or 12, got 99"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "expected rope_type default or yarn, got 'llama3'"),
        ({"architectures": "LlamaForCausalLM"}, "got architectures='LlamaForCausalLM'; hint"),
        ({"hidden_size": "48"}, "LlamaForCausalLM: expected hidden_size of the kind int, got '48'"),
        ({"rms_norm_eps": "x"}, "expected rms_norm_eps of the kind float, got 'x'"),
        ({"num_attention_heads": 0}, "n_heads must be an integer of at least 1, got 0"),
        ({"num_hidden_layers": 10**9}, "n_layers must be at most 16,384, got 1,000,000,000"),
        ({"num_hidden_layers": 16_000}, "missing model.layers.3.input_layernorm.weight"),
        ({"rope_scaling": "yarn"}, "expected rope_parameters or rope_scaling with keys and values, got 'yarn'"),
        ({"rope_scaling": {"type": "yarn"}}, "expected factor beside rope_type yarn, found none"),
        ({"rope_scaling": YARN_KEYS | {"factor": 1.0}}, "expected a yarn factor above 1, got 1.0"),
        ({"rope_scaling": YARN_KEYS | {"factor": "8"}}, "expected factor to be a number, got '8'"),
        ({"rope_scaling": YARN_KEYS | {"truncate": False}}, "expected truncate=True, got False"),
        ({"rope_scaling": YARN_KEYS | {"truncate": None}}, "expected truncate=True, got None"),
        ({"rope_scaling": YARN_KEYS | {"attention_factor": 0.8}}, "a yarn attention_factor of at least 1, got 0.8"),
        (
            {"rope_scaling": YARN_KEYS, "original_max_position_embeddings": 32},
            "expected original_max_position_embeddings=None or 16, got 32",
        ),
        ({"model_type": "granite"}, "LlamaForCausalLM: expected model_type='llama', got 'granite'"),
        ({"partial_rotary_factor": 0.5}, "expected partial_rotary_factor=None or 1.0, got 0.5"),
        ({"mlp_bias": True}, "expected mlp_bias=False, got True"),
        ({"is_causal": False}, "LlamaForCausalLM: expected is_causal=None or True, got False"),
        (
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 2.0}},
            "expected the same in rope_parameters and rope_scaling, or one of them, got .*'default'.*'linear'",
        ),
        (
            {"quantization_config": {"quant_method": "gptq"}},
            "expected plain weights or quant_method 'fp8' .* got .*gptq",
        ),
    ],
)
def test_settings_that_change_a_number_and_that_we_do_not_have_are_refused(tmp_path, changes, message):
    export_hf(random_model(MODELS["llama"]), tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        import_hf(tmp_path / "model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"moe_layer_freq": 2}, "DeepseekV3ForCausalLM: expected moe_layer_freq=None or 1, got 2"),
        ({"rope_interleave": "false"}, "expected rope_interleave=True or False, got 'false'"),
        ({"num_key_value_heads": 2}, "expected num_key_value_heads=None or 4, got 2"),
        ({"mlp_layer_types": ["sparse"] * 3}, "expected mlp_layer_types=None or .*'dense', 'sparse', 'sparse'.* got"),
        ({"num_experts_per_tok": 9}, r"n_activated_experts must be from 1 to n_routed_experts \(8\), got 9"),
        ({"n_group": 3}, r"n_expert_groups \(3\) must divide n_routed_experts \(8\)"),
        ({"n_shared_experts": None}, "expected the keys of DeepseekV3ForCausalLM, missing n_shared_experts"),
        ({"norm_topk_prob": "true"}, "expected norm_topk_prob of the kind bool, got 'true'"),
        ({"norm_topk_prob": None}, "expected norm_topk_prob=True or False, got None"),
        ({"head_dim": 20}, "expected head_dim=None or 8, got 20"),
    ],
)
def test_settings_of_experts_that_we_do_not_have_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        hf_config.read(hf_config.write(ModelConfig(**MODELS["v3"])) | changes)


def test_v2_has_no_pairs_in_two_halves():
    """transformers' class passes the key over and rotates neighbours."""
    with pytest.raises(ValueError, match="DeepseekV2ForCausalLM: expected rope_interleave=True, got False"):
        hf_config.read(hf_config.write(ModelConfig(**MODELS["v2"])) | {"rope_interleave": False})


def test_v2_leaves_the_weights_of_experts_as_they_are():
    """DeepSeek's code and transformers' class differ about the key."""
    with pytest.raises(ValueError, match="DeepseekV2ForCausalLM: expected norm_topk_prob=False, got True"):
        hf_config.read(hf_config.write(ModelConfig(**MODELS["v2"])) | {"norm_topk_prob": True})


def test_gpt2_has_one_value_by_two_names():
    config = ModelConfig(**MODELS["gpt2"])
    written = hf_config.write(config)
    assert hf_config.read(written | {"hidden_size": config.dim}) == config
    with pytest.raises(ValueError, match=f"GPT2LMHeadModel: expected hidden_size=None or {config.dim}, got 7"):
        hf_config.read(written | {"hidden_size": 7})


def test_dropout_of_attention_alone_is_left_out_with_a_word():
    config = ModelConfig(**MODELS["llama"])
    with pytest.warns(UserWarning, match=r"attention_dropout=0\.1: .*; read without it"):
        assert hf_config.read(hf_config.write(config) | {"attention_dropout": 0.1}) == config


def test_kimi_is_a_deepseek():
    written = hf_config.write(ModelConfig(**MODELS["v3"]))
    assert hf_config.read(written | {"model_type": "kimi_k2"}) == hf_config.read(written)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"3", b"\xff\xfe{}", b"[" * 100_000])
def test_a_config_that_is_no_config_is_refused_by_name(tmp_path, data):
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(ValueError, match=r"config\.json: expected (JSON|keys and values)"):
        import_hf(tmp_path)


def test_a_folder_without_a_config_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected config\.json in .*, found none"):
        import_hf(tmp_path)


@pytest.mark.parametrize(
    "data",
    [b"", b"1234567", struct.pack("<Q", 2**62) + b"{}", struct.pack("<Q", 1000) + b"{}",
     struct.pack("<Q", len(HEADER)) + HEADER + b"0000"],
)  # fmt: skip
def test_a_file_whose_sizes_lie_is_refused_by_name(tmp_path, data):
    export_hf(random_model(MODELS["llama"], torch.float32), tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=r"model\.safetensors: expected a safetensors file, got a damaged"):
        import_hf(tmp_path / "model")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([], r"index\.json: expected keys and values, got \[\]"),
        ({}, r"index\.json: expected a weight_map of tensors to file names, got None"),
        ({"weight_map": {"a": 1, "b": "x"}}, "expected a weight_map of tensors to file names"),
        ({"weight_map": {"a": "../model.safetensors"}}, r"expected names of files beside .*, got '\.\./model"),
        ({"weight_map": {"a": "/etc/passwd"}}, "expected names of files beside .*, got '/etc/passwd'"),
        ({"weight_map": {"a": ".."}}, r"expected names of files beside .*, got '\.\.'"),
        (
            {"weight_map": {"a": "model-00009.safetensors"}},
            r"expected a file at .*model-00009\.safetensors, found none",
        ),
        (
            {"weight_map": {"a": "model.safetensors"}},
            r"expected a in model\.safetensors, found it elsewhere or nowhere",
        ),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path, index, message):
    export_hf(random_model(MODELS["llama"], torch.float32), tmp_path / "model")
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        import_hf(tmp_path / "model")


def test_a_tensor_in_two_files_is_refused(tmp_path):
    export_hf(random_model(MODELS["llama"], torch.float32), tmp_path / "model", max_shard_bytes=40_000)
    first, second = sorted((tmp_path / "model").glob("*.safetensors"))[:2]
    both = safetensors.torch.load_file(first) | safetensors.torch.load_file(second)
    safetensors.torch.save_file(both, second)
    with pytest.raises(ValueError, match=r"expected .* once, found it in model-00001-.* and model-00002-"):
        import_hf(tmp_path / "model")


def test_a_missing_key_is_named():
    given = hf_config.write(ModelConfig(**MODELS["llama"]))
    del given["num_hidden_layers"]
    with pytest.raises(ValueError, match="expected the keys of LlamaForCausalLM, missing num_hidden_layers"):
        hf_config.read(given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), "expected 30 tensors, missing model.norm.weight"),
        (lambda t: t.update(extra=torch.ones(1)), "expected 30 tensors, extra left over"),
        (lambda t: t.update({"model.norm.weight": torch.ones(3)}), r"norm.weight of shape \[48\], got \[3\]"),
        (lambda t: t["model.norm.weight"].fill_(torch.nan), "expected finite numbers in model.norm.weight, got nan"),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(48, dtype=torch.int64)}),
            "expected model.norm.weight of a type of F64, .*, got I64",
        ),
        (lambda t: t.update({"model.norm.weight": torch.ones(48, dtype=torch.bool)}), "F8_E4M3, got BOOL"),
        (lambda t: t.update({"lm_head.weight_scale_inv": torch.ones(1, 1)}), "lm_head.weight_scale_inv left over"),
        (
            lambda t: t.update(
                {"lm_head.weight": t["lm_head.weight"].to(torch.float8_e4m3fn), SCALES: torch.ones(2, 1)}
            ),
            r"expected lm_head.weight_scale_inv of a matrix, \[1, 1\], got F32 \[2, 1\]",
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(48).to(torch.float8_e4m3fn)}),
            "expected scales model.norm.weight_scale_inv of an 8-bit weight, found none",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, message):
    export_hf(random_model(MODELS["llama"], torch.float32), tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(ValueError, match=message):
        import_hf(tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "copy", "ours"),
    [
        ("llama mqa tied", "lm_head.weight", "embed.token.weight"),
        ("v3 with a further token", "model.layers.3.embed_tokens.weight", "embed.token.weight"),
        ("v3 with a further token", "model.layers.3.shared_head.head.weight", "head.weight"),
    ],
)
def test_a_copy_of_a_shared_tensor_is_one(tmp_path, name, copy, ours):
    export_hf(random_model(MODELS[name], torch.float32), tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors.setdefault(copy, tensors["model.embed_tokens.weight"].clone())
    safetensors.torch.save_file(tensors, path)
    import_hf(tmp_path / "model")
    tensors[copy][7, 5] += 1.0
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(
        ValueError, match=f"expected {copy} to be a copy of {ours}, which the model shares, got another"
    ):
        import_hf(tmp_path / "model")


def test_pickles_are_not_read(tmp_path):
    export_hf(random_model(MODELS["gpt2"]), tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"found neither; hint: \*\.bin files are pickles"):
        import_hf(tmp_path / "model")
