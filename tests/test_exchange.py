"""Hugging Face directories both ways, judged by transformers: equal logits, gradients, greedy tokens, files."""

import json

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from gptrs.exchange import hf_config
from gptrs.exchange.gguf_read import import_gguf
from gptrs.exchange.hf import export_hf, import_hf, multiplied_out
from gptrs.generate import generate
from gptrs.model import ModelConfig, Transformer

TOLERANCE = 1e-5  # of double precision: transformers norms and rotates in single
COMMON = {"vocab_size": 61, "max_seq_len": 64, "dim": 48, "n_layers": 3, "n_heads": 4, "inter_dim": 64}
MODERN = COMMON | {
    "position": "rope", "norm": "rms", "feed_forward": "swiglu", "has_bias": False, "is_head_tied": False,
    "norm_eps": 1e-6, "init_std": 0.1,
}  # fmt: skip
LATENT = MODERN | {"kv_lora_rank": 24, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10}
EXPERTS = {
    "n_routed_experts": 8, "n_activated_experts": 3, "n_shared_experts": 2, "moe_inter_dim": 20, "n_dense_layers": 1,
    "n_expert_groups": 4, "n_limited_groups": 2, "route_scale": 2.5, "scales_residual_init": False,
}  # fmt: skip
V3 = LATENT | EXPERTS
V2 = LATENT | EXPERTS | {"score_func": "softmax", "norm_topk_prob": False, "group_score": "max"}
YARN = {"rope_factor": 8.0, "rope_original_len": 16, "rope_mscale": 0.8, "max_seq_len": 128}
MODELS = {
    "gpt2": COMMON | {"init_std": 0.1},
    "gpt2 untied": COMMON | {"init_std": 0.1, "is_head_tied": False},
    "llama": MODERN | {"n_kv_heads": 2},
    "llama mqa tied": MODERN | {"n_kv_heads": 1, "is_head_tied": True},
    "llama yarn": MODERN | {"n_kv_heads": 2} | YARN,
    "llama biased": MODERN | {"has_bias": True},
    "v2": V2,
    "v2 greedy, yarn": V2 | {"n_expert_groups": 1, "n_limited_groups": 1} | YARN,
    "v2 compressed queries": V2 | {"q_lora_rank": 16},
    "v3": V3,
    "v3 compressed queries, yarn": V3 | {"q_lora_rank": 16} | YARN,
    "v3 without norm_topk_prob": V3 | {"norm_topk_prob": False, "n_expert_groups": 1, "n_limited_groups": 1},
    "v3 dense": LATENT | {"scales_residual_init": False},
    "v3 with a further token": V3 | {"n_mtp_layers": 1},
    "v3 dense with further tokens": LATENT | {"n_mtp_layers": 2, "scales_residual_init": False},
    "v3 with experts behind the last layer": V3 | {"n_dense_layers": 3, "n_mtp_layers": 1},
}


def random_model(sizes, dtype=torch.float64):
    """A model whose norms, biases and router biases, negative ones too, are random as well."""
    model = Transformer(ModelConfig(**sizes), seed=5).to(dtype)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=dtype))
    return model


def theirs_of(path, dtype=torch.float64, **changes):
    from transformers import AutoConfig, AutoModelForCausalLM, __version__

    config = AutoConfig.from_pretrained(path, **changes)
    eager = {"attn_implementation": "eager"}
    has_experts = config.model_type == "deepseek_v3" and config.first_k_dense_replace < config.num_hidden_layers
    if int(__version__.partition(".")[0]) >= 5:  # before, experts had no other way
        eager["experts_implementation"] = "eager"
    elif has_experts and dtype == torch.float64:
        pytest.skip("transformers 4 adds V3's experts up in float32 alone")
    elif config.model_type == "deepseek_v2" and config.rope_scaling:
        pytest.skip("transformers 4 leaves YaRN out of the scale of V2's scores")
    model, info = AutoModelForCausalLM.from_pretrained(
        path, config=config, dtype=dtype, output_loading_info=True, **eager
    )
    assert not info["missing_keys"], info
    return model


def tokens(n_rows=2, length=32):
    return torch.randint(61, (n_rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MODELS)
def test_transformers_computes_the_same_logits_and_gradients(tmp_path, name):
    ours = random_model(MODELS[name])
    export_hf(ours, tmp_path / "model")
    theirs = theirs_of(tmp_path / "model")
    x, targets = tokens(), tokens().roll(-1, 1)
    logits, expected = ours(x), theirs(x).logits
    assert (logits - expected).abs().max() < TOLERANCE
    F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    F.cross_entropy(expected.flatten(0, 1), targets.flatten()).backward()
    is_gpt2 = name.startswith("gpt2")
    norm = theirs.transformer.h[0].ln_1 if is_gpt2 else theirs.model.layers[0].input_layernorm
    for mine, other in (
        (ours.embed.token.weight, theirs.get_input_embeddings().weight),
        (ours.layers[0].attn_norm.weight, norm.weight),
    ):
        assert (mine.grad - other.grad).abs().max() < TOLERANCE
        assert mine.grad.abs().max() > 1e-4
    if "v3" in name and ours.config.has_experts(1):
        mine, other = ours.layers[1].ffn, theirs.model.layers[1].mlp
        for a, b in (
            (mine.router.weight, other.gate.weight),
            (mine.experts.up, other.experts.gate_up_proj),
            (mine.experts.down, other.experts.down_proj),
        ):
            assert (a.grad - b.grad).abs().max() < TOLERANCE
            assert a.grad.abs().max() > 1e-4


def test_integers_in_fields_of_numbers_are_no_obstacle_to_transformers(tmp_path):
    ours = random_model(V3 | {"route_scale": 2, "rope_theta": 10_000})
    theirs = theirs_of(export_hf(ours, tmp_path / "model"))
    assert (ours(tokens()) - theirs(tokens()).logits).abs().max() < TOLERANCE


@pytest.mark.parametrize("name", ["gpt2", "llama", "v2", "v3 compressed queries, yarn"])
def test_greedy_tokens_are_those_of_transformers(tmp_path, name):
    ours = random_model(MODELS[name], torch.float32)
    export_hf(ours, tmp_path / "model")
    theirs = theirs_of(tmp_path / "model", torch.float32)
    prompt = tokens(1, 8)
    expected = theirs.generate(prompt, max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert generate(ours, prompt.tolist(), max_new_tokens=20, temperature=0.0)[0] == expected[0, 8:].tolist()


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_is_read_again_is_the_same_to_the_bit(tmp_path, name):
    ours = random_model(MODELS[name], torch.float32)
    export_hf(ours, tmp_path / "model", max_shard_bytes=40_000)
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    again = import_hf(tmp_path / "model")
    assert again.config == ours.config
    for (mine, a), (other, b) in zip(ours.named_parameters(), again.named_parameters(), strict=True):
        assert (mine, a.dtype, a.requires_grad) == (other, b.dtype, b.requires_grad)
        assert torch.equal(a, b), mine


@pytest.mark.parametrize("name", ["gpt2", "llama", "llama yarn", "v2", "v2 greedy, yarn", "v3", "v3 dense"])
def test_what_transformers_writes_is_read(tmp_path, name):
    export_hf(random_model(MODELS[name]), tmp_path / "ours")
    theirs = theirs_of(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    ours = import_hf(tmp_path / "theirs")
    assert ours.embed.token.weight.dtype == torch.float64
    assert (ours(tokens()) - theirs(tokens()).logits).abs().max() < TOLERANCE


def test_keys_that_are_missing_mean_what_transformers_takes_them_for(tmp_path):
    """V3's own sizes of what may be left out."""
    sizes = {"route_scale": 2.5, "n_expert_groups": 8, "n_limited_groups": 4, "n_dense_layers": 3, "n_layers": 4}
    export_hf(random_model(V3 | sizes | {"n_routed_experts": 16}), tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    given = json.loads(path.read_text())
    for key in ("norm_topk_prob", "routed_scaling_factor", "n_group", "topk_group", "first_k_dense_replace"):
        del given[key]
    path.write_text(json.dumps(given))
    theirs, ours = theirs_of(tmp_path / "model"), import_hf(tmp_path / "model")
    assert ours.config == ModelConfig(**V3 | sizes | {"n_routed_experts": 16})
    assert (ours(tokens()) - theirs(tokens()).logits).abs().max() < TOLERANCE


def test_further_tokens_that_transformers_dropped_are_not_missed(tmp_path):
    """It writes the config's number of them on, and none of their tensors."""
    export_hf(random_model(MODELS["v3 with a further token"]), tmp_path / "ours")
    theirs = theirs_of(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    with pytest.warns(UserWarning, match="its config has 1 further-token modules and its files none"):
        ours = import_hf(tmp_path / "theirs")
    assert ours.config.n_mtp_layers == 0
    assert (ours(tokens()) - theirs(tokens()).logits).abs().max() < TOLERANCE


def test_pairs_in_two_halves_are_read(tmp_path):
    export_hf(random_model(V3 | {"q_lora_rank": 16}), tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_interleave": False}))
    theirs, ours = theirs_of(tmp_path / "model"), import_hf(tmp_path / "model")
    assert (ours(tokens()) - theirs(tokens()).logits).abs().max() < TOLERANCE
    assert (ours(tokens()) - random_model(V3 | {"q_lora_rank": 16})(tokens())).abs().max() > 1e-3


def test_further_tokens_are_those_of_transformers(tmp_path):
    from transformers import modeling_layers

    if not hasattr(modeling_layers, "MtpModel"):
        pytest.skip("transformers 4 has no further tokens")
    ours = random_model(MODELS["v3 with a further token"])
    export_hf(ours, tmp_path / "model")
    theirs = theirs_of(tmp_path / "model")
    layer = modeling_layers.MtpModel(theirs, 1).double().layers[0]
    tensors = {
        name.removeprefix("model.layers.3."): tensor
        for name, tensor in safetensors.torch.load_file(tmp_path / "model" / "model.safetensors").items()
        if name.startswith("model.layers.3.") and ".experts." not in name
    }
    experts = ours.further[0].block.ffn.experts
    for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
        inner = name.removeprefix("mtp_block.")
        stacked = {"mlp.experts.gate_up_proj": experts.up, "mlp.experts.down_proj": experts.down}
        source = {"post_norm.weight": "shared_head.norm.weight"}.get(inner, inner)
        tensor.data.copy_(stacked[inner] if inner in stacked else tensors[source])

    x, positions = tokens(1, 20), torch.arange(19).unsqueeze(0)
    ((states, _),) = ours.further_states(ours.hidden(x), x, None, None)
    mask = torch.full((1, 1, 19, 19), -torch.inf, dtype=torch.float64).triu(1)
    expected = layer(
        theirs.model.embed_tokens(x[:, 1:]),
        theirs.model(x).last_hidden_state[:, :19],
        theirs.model.rotary_emb(x.double(), positions),
        mask,
        positions,
        None,
    )
    assert (ours.logits(states) - theirs.lm_head(expected)).abs().max() < TOLERANCE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position": "sinusoidal"}, "transformers has no such model"),
        ({"has_bias": False}, "GPT2LMHeadModel cannot hold this model: it needs biases"),
        ({"n_kv_heads": 2}, "GPT2LMHeadModel cannot hold this model: it needs as many kv heads as heads"),
        (MODERN | EXPERTS, "LlamaForCausalLM cannot hold this model: it needs no experts without latent attention"),
        (V3 | {"norm_eps": 1e-5}, "DeepseekV3ForCausalLM cannot hold this model: it needs a norm_eps of 1e-6"),
        (V3 | {"n_shared_experts": 0}, "it needs shared experts beside routed ones"),
        (V3 | {"group_score": "max"}, "it needs groups scored by their best two experts"),
        (V2 | {"norm_topk_prob": True}, "it needs weights of experts as the softmax gives them"),
        (V2 | {"n_mtp_layers": 1}, "DeepseekV2ForCausalLM cannot hold this model: it needs no further-token modules"),
    ],
)
def test_what_transformers_does_not_have_is_refused_by_name(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        export_hf(Transformer(ModelConfig(**COMMON | changes)), tmp_path / "model")
    assert not any(tmp_path.iterdir())


def test_dropout_comes_back_when_it_is_one():
    config = ModelConfig(**MODELS["gpt2"], dropout=0.1)
    assert hf_config.read(hf_config.write(config)) == config
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel: expected attn_pdrop=0\.1, got 0\.3"):
        hf_config.read(hf_config.write(config) | {"attn_pdrop": 0.3})


def test_names_without_the_prefix_of_the_class_are_read(tmp_path):
    """OpenAI's GPT-2 is published as wte.weight, h.0.attn.c_attn.weight, … with masks among them."""
    for name in ("gpt2 untied", "llama"):
        ours = random_model(MODELS[name], torch.float32)
        export_hf(ours, tmp_path / name)
        path = tmp_path / name / "model.safetensors"
        tensors = {
            key.removeprefix("transformer.").removeprefix("model."): tensor
            for key, tensor in safetensors.torch.load_file(path).items()
        }
        safetensors.torch.save_file(tensors | {"h.0.attn.bias": torch.ones(1, 1, 4, 4)}, path)
        again = import_hf(tmp_path / name)
        assert torch.equal(again(tokens()), ours(tokens()))


def test_the_type_is_that_of_the_embedding_and_8_bits_become_single(tmp_path):
    ours = random_model(MODELS["llama"]).to(torch.bfloat16)
    export_hf(ours, tmp_path / "model")
    assert import_hf(tmp_path / "model").embed.token.weight.dtype == torch.bfloat16
    assert import_hf(tmp_path / "model", dtype=torch.float64).embed.token.weight.dtype == torch.float64
    path = tmp_path / "model" / "model.safetensors"
    tensors, name = safetensors.torch.load_file(path), "model.embed_tokens.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    safetensors.torch.save_file(tensors | {f"{name}_scale_inv": torch.ones(1, 1)}, path)
    assert import_hf(tmp_path / "model").embed.token.weight.dtype == torch.float32


def test_routers_keep_single_in_a_model_of_bf16(tmp_path):
    """A balanced router's biases lie far from 0, and what decides between experts is below a step of bf16 there."""
    ours = random_model(MODELS["v3"], torch.float32)
    with torch.no_grad():
        ours.layers[1].ffn.router.bias.add_(5.0)
    bias = ours.layers[1].ffn.router.bias.clone()
    export_hf(ours.bfloat16(), tmp_path / "model")
    again = import_hf(tmp_path / "model")
    assert again.embed.token.weight.dtype == torch.bfloat16
    assert torch.equal(again.layers[1].ffn.router.bias, bias)
    assert torch.equal(again.half().layers[1].ffn.router.bias, bias)
    gate = theirs_of(tmp_path / "model", torch.bfloat16).model.layers[1].mlp.gate
    assert torch.equal(gate.e_score_correction_bias, bias)
    assert torch.equal(gate.weight, again.layers[1].ffn.router.weight)


def test_weights_in_blocks_of_8_bit_floats_are_multiplied_out(tmp_path):
    weight = torch.randn(200, 300, generator=torch.Generator().manual_seed(2))
    scales = torch.rand(2, 3, generator=torch.Generator().manual_seed(3)) + 0.5
    small = weight.to(torch.float8_e4m3fn)
    whole = multiplied_out(small, scales)
    for row, column in ((0, 0), (127, 128), (128, 127), (199, 299)):
        assert whole[row, column] == small[row, column].float() * scales[row // 128, column // 128]
    with pytest.raises(ValueError, match=r"expected scales of shape \(2, 3\) .* got \(3, 2\)"):
        multiplied_out(small, scales.T)

    ours = random_model(MODELS["v3"], torch.float32)
    export_hf(ours, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    name = "model.layers.1.mlp.experts.3.down_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    tensors[name + "_scale_inv"] = torch.full((1, 1), 0.5)
    safetensors.torch.save_file(tensors, path)
    expected = ours.layers[1].ffn.experts.down[3].to(torch.float8_e4m3fn).float() * 0.5
    assert torch.equal(import_hf(tmp_path / "model").layers[1].ffn.experts.down[3], expected)


def test_numbers_that_a_type_cannot_hold_are_refused_both_ways(tmp_path):
    ours = random_model(MODELS["llama"], torch.float32)
    with torch.no_grad():
        ours.layers[1].ffn.down.weight[3, 5] = 1e5
    export_hf(ours, tmp_path / "model")
    name = r"model\.layers\.1\.mlp\.down_proj\.weight"
    with pytest.raises(ValueError, match=rf"expected numbers in {name} that float16 can hold, got one of 1e\+05; hint"):
        import_hf(tmp_path / "model", dtype=torch.float16)
    assert import_hf(tmp_path / "model", dtype=torch.bfloat16).layers[1].ffn.down.weight.max() > 9e4
    with pytest.raises(ValueError, match=rf"expected finite numbers in {name} as float16, got nan or infinity; hint"):
        export_hf(ours.half(), tmp_path / "half")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_directory_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="expected an empty or new directory"):
        export_hf(random_model(MODELS["gpt2"]), tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_presets_that_transformers_has_name_their_class():
    kinds = {"gpt2-xl": "GPT2", "llama-small": "Llama", "deepseek-v2-lite": "DeepseekV2", "deepseek-v3": "DeepseekV3"}
    for preset, kind in kinds.items():
        config = ModelConfig.preset(preset)
        assert hf_config.architecture_of(config) == kind + ("LMHeadModel" if kind == "GPT2" else "ForCausalLM")
        assert hf_config.read(hf_config.write(config)) == config


def test_the_command_line_takes_a_folder_in_and_out(tmp_path, warm_cli, gpt2_like):
    sizes = MODELS["v3 compressed queries, yarn"] | {"vocab_size": gpt2_like.vocab_size}
    ours = random_model(sizes, torch.float32)
    export_hf(ours, tmp_path / "theirs", tokenizer=gpt2_like)
    done = warm_cli("import", tmp_path / "theirs", "--out", tmp_path / "run")
    assert (done.returncode, done.stdout) == (
        0,
        f"{tmp_path / 'run'}: {sum(p.numel() for p in ours.parameters()):,} parameters\n",
    )
    settings = ("--prompt", "import os", "--temperature", "0", "-n", "8", "--device", "cpu")
    written = warm_cli("generate", "--run", tmp_path / "run", *settings)
    ids = gpt2_like.encode("import os")
    (new,) = generate(ours, [ids], max_new_tokens=8, temperature=0.0, stop_tokens=(gpt2_like.eot_id,))
    assert written.stdout == "import os" + gpt2_like.decode(new) + "\n"
    assert warm_cli("export", "--run", tmp_path / "run", "--out", tmp_path / "again").returncode == 0
    files = sorted(path.name for path in (tmp_path / "theirs").iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(files)
    for name in files:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes(), name

    done = warm_cli("export", "--run", tmp_path / "run", "--out", tmp_path / "model.gguf", "--dtype", "float16")
    assert (done.returncode, (tmp_path / "model.gguf").read_bytes()[:4]) == (0, b"GGUF")

    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert tokenizer("import os")["input_ids"] == ids


def test_a_model_without_a_tokenizer_goes_in_and_out(tmp_path, warm_cli):
    pytest.importorskip("gguf")
    ours = random_model(MODELS["llama"], torch.float32)
    export_hf(ours, tmp_path / "theirs")
    done = warm_cli("import", tmp_path / "theirs", "--out", tmp_path / "run")
    assert done.returncode == 0 and "has no tokenizer.json; hint: name its tokenizer with --tokenizer" in done.stderr
    for out in ("again", "model.gguf"):
        done = warm_cli("export", "--run", tmp_path / "run", "--out", tmp_path / out)
        assert done.returncode == 0 and "run has no tokenizer.json, so" in done.stderr
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "theirs" / "model.safetensors"
    ).read_bytes()
    assert not (tmp_path / "again" / "tokenizer.json").exists()
    again = import_gguf(tmp_path / "model.gguf").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in ours.state_dict().items())
    written = warm_cli("generate", "--run", tmp_path / "run", "--prompt", "x")
    assert written.returncode == 1
    assert "expected tokenizer.json in" in written.stderr and "--tokenizer FILE" in written.stderr


def test_a_model_of_more_ids_than_its_tokenizer_goes_in_and_out(tmp_path, warm_cli, gpt2_like):
    n = gpt2_like.vocab_size
    ours = random_model(MODELS["llama"] | {"vocab_size": n + 40}, torch.float32)
    export_hf(ours, tmp_path / "theirs", tokenizer=gpt2_like)
    assert warm_cli("import", tmp_path / "theirs", "--out", tmp_path / "run").returncode == 0
    for out in ("again", "model.gguf"):
        done = warm_cli("export", "--run", tmp_path / "run", "--out", tmp_path / out)
        assert (done.returncode, done.stderr) == (0, "")
    for path in (tmp_path / "theirs").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name
    with torch.no_grad():
        ours.head.weight[:n] = 0.0  # the likeliest id is one without a token
    export_hf(ours, tmp_path / "odd", tokenizer=gpt2_like)
    assert warm_cli("import", tmp_path / "odd", "--out", tmp_path / "odd-run").returncode == 0
    settings = ("--prompt", "import", "--temperature", "0", "-n", "3", "--device", "cpu")
    done = warm_cli("generate", "--run", tmp_path / "odd-run", *settings, "--logprobs", "1")
    assert done.returncode == 0, done.stderr
    assert all(json.loads(line)["id"] >= n for line in done.stdout.splitlines())
    assert all(json.loads(line)["token"] is None for line in done.stdout.splitlines())


def test_the_command_line_says_what_it_cannot_take(tmp_path, warm_cli, gpt2_like):
    export_hf(random_model(MODELS["llama"], torch.float32), tmp_path / "theirs")
    gpt2_like.save(tmp_path / "tokenizer.json")
    for words, message in (
        (("import", tmp_path / "none", "-o", tmp_path / "run"), "expected a folder, a *.gguf or a *.bin file, found"),
        (("import", tmp_path / "theirs", "-o", tmp_path), "expected an empty or new directory"),
        (
            ("import", tmp_path / "theirs", "-o", tmp_path / "run", "--tokenizer", tmp_path / "tokenizer.json"),
            f"got one of {gpt2_like.vocab_size} ids and a model of 61; hint: --tokenizer FILE",
        ),
        (("export", "-o", tmp_path / "out", "--dtype", "q8_0"), "expected --out FILE.gguf with --dtype q8_0"),
        (("export", "-o", tmp_path / "out"), "expected --run DIR or --checkpoint DIR"),
        (
            ("export", "--run", tmp_path / "run", "-o", tmp_path / "none" / "x.gguf"),
            f"in a folder that exists, got {tmp_path / 'none' / 'x.gguf'}; hint: mkdir -p {tmp_path / 'none'}",
        ),
    ):
        done = warm_cli(*words)
        assert done.returncode != 0
        assert message in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()
