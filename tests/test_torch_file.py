"""PyTorch's files by the explicit command: nanoGPT's checkpoints, state dicts of transformers; nothing runs."""

import argparse
import json
import os
import re

import pytest
import torch
import torch.nn.functional as F

from gptrs.exchange.hf import export_hf, import_hf
from gptrs.exchange.torch_file import convert, is_torch_file
from test_exchange import MODELS, random_model, tokens

SIZES = MODELS["gpt2"] | {"inter_dim": 4 * 48}
ARGUMENTS = {"n_layer": 3, "n_head": 4, "n_embd": 48, "block_size": 64, "vocab_size": 61, "bias": True, "dropout": 0.0}
NAMES = {
    "embed.token": "wte", "embed.position": "wpe", "norm": "ln_f", "attn_norm": "ln_1", "ffn_norm": "ln_2",
    "attn.qkv": "attn.c_attn", "attn.output": "attn.c_proj", "ffn.up": "mlp.c_fc", "ffn.down": "mlp.c_proj",
}  # fmt: skip


def nanogpt(model, *, prefix="", bias=True):
    """What nanoGPT saves of a model: rows as ours, the head under its own name as well."""
    out = {}
    for name, tensor in model.state_dict().items():
        stem, _, kind = name.rpartition(".")
        if kind == "bias" and not bias:
            continue
        if stem.startswith("layers."):
            _, layer, part = stem.split(".", 2)
            theirs = f"h.{layer}.{NAMES[part]}"
        else:
            theirs = NAMES[stem]
        out[f"{prefix}transformer.{theirs}.{kind}"] = tensor
    out[f"{prefix}lm_head.weight"] = model.embed.token.weight.detach()
    return out


def checkpoint(model, **given):
    return {
        "model": nanogpt(model, **given), "model_args": ARGUMENTS | {"bias": given.get("bias", True)}, "iter_num": 7,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}, "config": {"lr": 1},
        "best_val_loss": torch.tensor(1.0),
    }  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
@pytest.mark.parametrize("is_archive", [True, False])
def test_a_checkpoint_of_nanogpt_has_its_weights(tmp_path, prefix, is_archive):
    ours = random_model(SIZES, torch.float32)
    path = tmp_path / "ckpt.pt"
    torch.save(checkpoint(ours, prefix=prefix), path, _use_new_zipfile_serialization=is_archive)
    assert is_torch_file(path)
    again = import_hf(convert(path, tmp_path / "model"))
    assert torch.equal(again(tokens()), ours(tokens()))


def test_that_nanogpt_has_another_gelu_is_said_with_a_bound_that_holds(tmp_path):
    torch.save(checkpoint(random_model(SIZES, torch.float32)), tmp_path / "ckpt.pt")
    with pytest.warns(UserWarning, match=r"ckpt\.pt: nanoGPT computes GELU exactly, GPT-2 by its tanh form"):
        convert(tmp_path / "ckpt.pt", tmp_path / "model")
    x = torch.linspace(-20, 20, 400_001, dtype=torch.float64)
    assert 4e-4 < (F.gelu(x) - F.gelu(x, approximate="tanh")).abs().max() < 5e-4


def test_a_checkpoint_without_biases_gets_zeros(tmp_path):
    ours = random_model(SIZES, torch.float32)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if name.endswith(".bias"):
                parameter.zero_()
    torch.save(checkpoint(ours, bias=False), tmp_path / "ckpt.pt")
    again = import_hf(convert(tmp_path / "ckpt.pt", tmp_path / "model"))
    assert torch.equal(again(tokens()), ours(tokens()))


@pytest.mark.parametrize("name", ["gpt2", "llama", "v3"])
def test_a_state_dict_is_read_with_the_config_beside_it(tmp_path, name):
    ours = random_model(MODELS[name], torch.float32)
    export_hf(ours, tmp_path / "theirs")
    import safetensors.torch

    torch.save(safetensors.torch.load_file(tmp_path / "theirs" / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"expected config\.json of transformers beside"):
        convert(tmp_path / "pytorch_model.bin", tmp_path / "model")
    (tmp_path / "config.json").write_bytes((tmp_path / "theirs" / "config.json").read_bytes())
    again = import_hf(convert(tmp_path / "pytorch_model.bin", tmp_path / "model"))
    assert torch.equal(again(tokens()), ours(tokens()))


def test_tensors_that_overlap_in_memory_are_read(tmp_path):
    """A table that two names have different stretches of."""
    ours = random_model(MODELS["llama"], torch.float32)
    table = torch.randn(70, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours.embed.token.weight.copy_(table[:61])
        ours.head.weight.copy_(table[9:])
    export_hf(ours, tmp_path / "theirs")
    import safetensors.torch

    tensors = safetensors.torch.load_file(tmp_path / "theirs" / "model.safetensors")
    tensors |= {"model.embed_tokens.weight": table[:61], "lm_head.weight": table[9:]}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_bytes((tmp_path / "theirs" / "config.json").read_bytes())
    again = import_hf(convert(tmp_path / "pytorch_model.bin", tmp_path / "model"))
    assert torch.equal(again(tokens()), ours(tokens()))


def test_parameters_are_read_as_the_tensors_they_are(tmp_path):
    ours = random_model(SIZES, torch.float32)
    whole = checkpoint(ours)
    whole["model"] = {name: torch.nn.Parameter(tensor) for name, tensor in whole["model"].items()}
    torch.save(whole, tmp_path / "ckpt.pt")
    again = import_hf(convert(tmp_path / "ckpt.pt", tmp_path / "model"))
    assert torch.equal(again(tokens()), ours(tokens()))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            torch.nn.Linear(2, 2),
            r"it holds a whole module of the class torch\.nn\.modules\.linear\.Linear, and .* runs code; hint: save",
        ),
        ({"args": argparse.Namespace(a=1)}, r"it holds an object of the class argparse\.Namespace, and reading that"),
        (
            {"epoch": 3, "state_dict": {"a": torch.zeros(2)}},
            r"expected tensors by name, got 'epoch' among epoch, state_dict; hint: the tensors are under 'state_dict'",
        ),
    ],
)
def test_what_stands_in_the_place_of_tensors_is_named(tmp_path, given, message):
    torch.save(given, tmp_path / "ckpt.pt")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "ckpt.pt", tmp_path / "model")


class Hostile:
    """Would make a folder if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_nothing_in_a_file_runs(tmp_path):
    torch.save({"model": Hostile(str(tmp_path / "ran"))}, tmp_path / "ckpt.pt")
    with pytest.raises(
        ValueError, match=r"ckpt\.pt: expected a file of tensors by PyTorch: .*mkdir.*; hint: save"
    ) as said:
        convert(tmp_path / "ckpt.pt", tmp_path / "model")
    assert not re.search("weights_only|safe_globals", str(said.value)), "how to load it all the same is not its advice"
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt.pt"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["model_args"].pop("n_head"), "expected integers in model_args, missing n_head"),
        (lambda c: c["model_args"].update(use_relu=False), r"expected model_args of nanoGPT \(.*\), got use_relu too"),
        (
            lambda c: c["model_args"].update(n_head=7),
            r"ckpt\.pt: the sizes in model_args do not fit: n_heads \(7\) must divide dim \(48\)",
        ),
        (lambda c: c["model_args"].update(n_layer=2), "expected 28 tensors, .* left over"),
        (lambda c: c["model"].pop("transformer.wpe.weight"), "missing transformer.wpe.weight"),
        (lambda c: c["model"].update({"transformer.ln_f.weight": torch.full((48,), torch.nan)}), "got nan or infinity"),
        (lambda c: c["model"].update({"lm_head.weight": torch.ones(61, 48)}), "expected lm_head.weight to be tied"),
        (lambda c: c["model"].update(extra="text"), "expected tensors by name, got 'extra'"),
        (
            lambda c: c["model"].update({"transformer.ln_f.weight": torch.ones(48).to_sparse()}),
            r"ckpt\.pt: expected plain numbers in transformer\.ln_f\.weight, got a tensor that is sparse",
        ),
        (
            lambda c: c["model"].update({"transformer.ln_f.weight": torch.ones(48, device="meta")}),
            r"ckpt\.pt: expected plain numbers in transformer\.ln_f\.weight, got a tensor that is on meta",
        ),
        (
            lambda c: c["model"].update({"_orig_mod.transformer.ln_f.weight": torch.ones(48)}),
            r"ckpt\.pt: expected transformer\.ln_f\.weight once, got it with the prefix _orig_mod\. too",
        ),
        (
            lambda c: (
                c["model_args"].update(bias=False),
                c["model"].update({"transformer.h.0.attn.c_attn.weight": torch.tensor(1.0)}),
            ),
            r"expected transformer\.h\.0\.attn\.c_attn\.weight of shape \[48, 144\], got \[\]",
        ),
        (lambda c: c.pop("model_args"), "expected config.json of transformers beside"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(tmp_path, change, message):
    whole = checkpoint(random_model(SIZES, torch.float32))
    change(whole)
    torch.save(whole, tmp_path / "ckpt.pt")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        convert(tmp_path / "ckpt.pt", tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt.pt"]


@pytest.mark.parametrize("data", [b"", b"text", b"PK\x03\x04", b"\x80\x02."])
def test_other_files_are_refused(tmp_path, data):
    (tmp_path / "ckpt.pt").write_bytes(data)
    with pytest.raises(ValueError, match=r"ckpt\.pt: expected a file of tensors by PyTorch"):
        convert(tmp_path / "ckpt.pt", tmp_path / "model")


@pytest.mark.parametrize(("data", "message"), [("{", "expected JSON"), ("[1]", "expected keys and values, got")])
def test_a_config_beside_that_is_none_is_refused_by_name(tmp_path, data, message):
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(data)
    with pytest.raises(ValueError, match=rf"{tmp_path}/config\.json: {message}"):
        convert(tmp_path / "pytorch_model.bin", tmp_path / "out")


def test_the_command_converts_and_import_says_so(tmp_path, warm_cli):
    ours = random_model(SIZES, torch.float32)
    torch.save(checkpoint(ours), tmp_path / "ckpt.pt")
    refused = warm_cli("import", tmp_path / "ckpt.pt", "-o", tmp_path / "run")
    assert refused.returncode == 1 and "hint: gptrs convert" in refused.stderr
    done = warm_cli("convert", tmp_path / "ckpt.pt", "-o", tmp_path / "model")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "model" / "config.json").read_text())["n_layer"] == 3
    assert torch.equal(import_hf(tmp_path / "model")(tokens()), ours(tokens()))
