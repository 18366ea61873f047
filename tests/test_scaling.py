"""`gptrs plan --compute`: the optimum of the law in closed form and by search, and a model that exists of that size."""

import json
import math
from pathlib import Path

import pytest

from conftest import Cli
from gptrs import scaling
from gptrs.model import PRESETS, ModelConfig, count
from gptrs.scaling import CHINCHILLA, Law

BUDGETS = (1e17, 1e19, 5.76e23, 1e26)


@pytest.mark.parametrize("compute", BUDGETS)
def test_the_closed_form_is_the_least_that_a_search_finds(compute: float) -> None:
    best = scaling.optimum(compute)
    assert 6 * best.n_params * best.tokens == pytest.approx(compute)
    low, high = math.log(best.n_params) - 3, math.log(best.n_params) + 3
    golden = (math.sqrt(5) - 1) / 2

    def loss(log_n: float) -> float:
        return CHINCHILLA.loss(math.exp(log_n), compute / 6 / math.exp(log_n))

    for _ in range(100):
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    assert loss(low) >= best.loss - 1e-12
    assert math.exp(low) == pytest.approx(best.n_params, rel=1e-4), "the optimum is flat: half of the digits"


def test_the_law_is_that_of_the_papers() -> None:
    """70e9 parameters and 1.4e12 tokens, Chinchilla's own size, worked by hand."""
    by_hand = 1.8172 + 482.01 / 70e9**0.3478 + 2085.43 / 1.4e12**0.3658
    assert CHINCHILLA.loss(70e9, 1.4e12) == pytest.approx(by_hand, abs=1e-12) and 1.96 < by_hand < 1.98
    best = scaling.optimum(5.76e23)
    assert 65e9 < best.n_params < 80e9 and 15 < best.tokens / best.n_params < 25
    even = Law(irreducible=1.0, of_size=3.0, of_data=3.0, size=0.5, data=0.5, source="")
    point = scaling.optimum(600.0, even)
    assert (point.n_params, point.tokens, point.loss) == (pytest.approx(10), pytest.approx(10), pytest.approx(2.897367))


def test_the_rule_of_thumb_has_20_tokens_for_each_parameter() -> None:
    point = scaling.rule_of_thumb(1.2e21)
    assert point.n_params == pytest.approx(math.sqrt(1e19)) and point.tokens == pytest.approx(20 * point.n_params)
    assert point.loss >= scaling.optimum(1.2e21).loss


@pytest.mark.parametrize("name", ["gpt2-small", "llama-small"])
@pytest.mark.parametrize("compute", BUDGETS)
def test_the_model_exists_and_is_of_about_the_size(name: str, compute: float) -> None:
    kind = PRESETS[name]
    found = scaling.suggest(compute, kind, name=name)
    config = ModelConfig(**found["model"]["config"])
    assert found["model"]["n_params"] == count.n_params(config)
    off = 0.03 if compute >= 1e19 else 0.25  # small ones jump with their vocabulary's matrices
    assert found["model"]["n_params"] == pytest.approx(found["optimum"]["n_params"], rel=off)
    assert 6 * found["model"]["n_params"] * found["model"]["tokens"] == pytest.approx(compute)
    assert config.head_dim == kind.head_dim and config.n_heads * kind.kv_heads == config.kv_heads * kind.n_heads
    assert 32 <= config.dim / config.n_layers <= 128 and (config.dim < 1024 or config.dim % 128 == 0)
    assert found["optimum"]["loss"] <= found["model"]["loss"] < found["optimum"]["loss"] * 1.005
    hint = found["suggested"]
    assert hint["steps"] * hint["global_batch"] * hint["seq_len"] >= found["model"]["tokens"]
    assert hint["global_batch"] * hint["seq_len"] == pytest.approx(hint["batch_tokens"], rel=0.08)


def test_a_preset_s_own_size_gives_a_model_like_it() -> None:
    found = scaling.shape(PRESETS["gpt2-small"], 124_439_808)
    assert (found.dim, found.n_layers, found.n_heads) == (768, 12, 12)


def test_the_command_prints_draws_and_prices(cli: Cli, tmp_path: Path) -> None:
    words = ("--compute", "1e19", "--gpus", 8, "--price", 2, "--mfu", 0.5, "--plot", tmp_path / "law.png")
    done = cli("plan", *words)
    assert done.returncode == 0, done.stderr
    for text in ("2.622e+08", "6.357e+09", "2.9271", "2.9278", "266,649,600", "2404.10102", "2401.02954", "dim 1,024"):
        assert text in done.stdout, text
    assert (tmp_path / "law.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(cli("plan", "llama-small", "vocab_size=8192", "--compute", 1e18, "--json").stdout)
    assert found["model"]["kind"] == "llama-small" and found["model"]["config"]["vocab_size"] == 8192
    assert found["training"]["gpu_hours"] == pytest.approx(found["model"]["flops"] / (989e12 * 0.4) / 3600)
    sizes = json.loads(cli("plan", "vocab_size=8192", "--compute", 1e18, "--json").stdout)
    assert sizes["model"]["kind"] == "gpt2-small" and sizes["model"]["config"]["vocab_size"] == 8192


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--compute", "0"), "compute must be a positive number of FLOP, got 0.0"),
        (("--compute", "nan"), "compute must be a positive number of FLOP, got nan"),
        (("--compute", "1e12"), "got 67,654 parameters; hint: the smallest has 3,332,096; vocab_size=4096"),
        (("--compute", "1e40"), "expected a size that such a model can have"),
        (("deepseek-v3", "--compute", "1e19"), "expected a dense model: the law knows no experts"),
    ],
)
def test_mistakes_are_one_line(cli: Cli, words: tuple[str, ...], message: str) -> None:
    done = cli("plan", *words)
    assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [(), ("--compute", 1e19, "--layers"), ("--compute", 1e19, "--tokens", 1e9)])
def test_what_does_not_go_together_is_a_wrong_command_line(cli: Cli, words: tuple[object, ...]) -> None:
    assert cli("plan", *words).returncode == 2


def test_a_split_says_nothing_about_a_budget(cli: Cli) -> None:
    done = cli("plan", "--compute", 1e19, "--micro-batch", 4)
    assert done.returncode == 2 and "--compute goes with a kind, sizes" in done.stderr
