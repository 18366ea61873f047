"""Every config that comes with the package: it loads, its model is the one its name says, and it makes an update."""

import math
import re
from pathlib import Path

import pytest
import torch

import gptrs
from gptrs.model import ModelConfig, Transformer, count
from gptrs.train import pretrain
from gptrs.train.config import load

NAMES = sorted(path.stem for path in (Path(gptrs.__file__).parent / "configs").glob("*.toml"))
DEMOS = {"demo", "demo_deepseek_tiny", "demo_gpu"}
TRAINED = {"shakespeare_cpu", "shakespeare_gpu", "gpt2_124m", "deepseek_tiny", "deepseek_small", "deepseek_v2_lite"}
PRESETS = {"gpt2_124m": "gpt2-small", "deepseek_tiny": "deepseek-tiny", "deepseek_small": "deepseek-small",
           "deepseek_v2_lite": "deepseek-v2-lite"}  # fmt: skip
TINY = ["run.device=cpu", "run.compile=false", "run.threads=1", "model.dim=32", "model.n_layers=2", "model.n_heads=2",
        "model.inter_dim=32", "tokenizer.vocab_size=300", "train.steps=1", "train.global_batch=2",
        "train.micro_batch=1", "train.seq_len=16", "train.eval_rows=2", "schedule.warmup_steps=0",
        "data.val_fraction=0.1", "sample.max_new_tokens=2"]  # fmt: skip
LATENT = ["model.kv_lora_rank=8", "model.qk_nope_head_dim=8", "model.qk_rope_head_dim=4", "model.v_head_dim=8",
          "model.n_routed_experts=4", "model.n_activated_experts=2", "model.moe_inter_dim=16"]  # fmt: skip
ALONE = ["parallel.data=auto", "parallel.expert=1"]


def overrides(name: str) -> list[str]:
    return [*TINY, *(LATENT if "deepseek" in name else []), *(ALONE if name == "deepseek_v2_lite" else [])]


def test_these_are_all_of_them() -> None:
    assert set(NAMES) >= DEMOS | TRAINED


@pytest.mark.parametrize("name", NAMES)
def test_a_config_loads_and_its_model_is_built_without_memory(name: str) -> None:
    config = load(name)
    model = config.model.resolve(vocab_size=config.tokenizer.vocab_size, seq_len=config.train.seq_len)
    with torch.device("meta"):
        built = Transformer(model)
    assert sum(p.numel() for p in built.parameters()) == count.n_params(model)
    if name in PRESETS:
        assert model == ModelConfig.preset(PRESETS[name])


@pytest.mark.parametrize("name", NAMES)
def test_a_header_says_what_to_expect(name: str) -> None:
    text = (Path(gptrs.__file__).parent / "configs" / f"{name}.toml").read_text("utf-8")
    header = text[: text.index("[run]")]
    assert f"gptrs train {name}" in header or "gptrs demo" in header
    if name in {"demo", *TRAINED}:
        assert "measured" in header.lower(), "figures say whether they were"
        for figure in (r"\d (s|minutes?|hours?|days)\b|a minute", r"\d GB", r"\d( M)? tokens/s", r"\d nats"):
            assert re.search(figure, header), figure


@pytest.mark.parametrize("name", NAMES)
def test_a_config_makes_an_update_in_small(name: str, tmp_path: Path, stdlib_files: list[Path]) -> None:
    text = tmp_path / "text.txt"
    text.write_text(stdlib_files[0].read_text("utf-8")[:20_000], "utf-8")
    places = [f"data.text={text}", f"run.dir={tmp_path / 'run'}"]
    result = pretrain.run(load(name, [*places, *overrides(name)]))
    assert result.steps == 1 and 0 < result.val_loss < 1.2 * math.log(300)


def test_ten_billion_tokens_are_ten_billion() -> None:
    train = load("gpt2_124m").train
    assert train.steps * train.global_batch * train.seq_len == pytest.approx(10e9, rel=1e-3)
    assert train.global_batch * train.seq_len == 524_288
