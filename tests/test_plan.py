"""`gptrs plan`: the numbers that a model is known by, before it is built, in the time of a keystroke."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import Cli
from gptrs import Tokenizer
from gptrs import plan as plans
from gptrs.model import PRESETS, count

KEYS = {
    "preset": str, "config": dict, "parameters": dict, "layers": list, "flops_per_token": dict, "cache": list,
    "rank": dict, "training": (dict, type(None)), "released": (dict, type(None)), "check": (dict, type(None)),
}  # fmt: skip


def test_the_table_says_what_the_model_is_known_by(cli: Cli):
    done = cli("plan", "deepseek-v3", "--released", "--layers")
    assert done.returncode == 0 and done.stderr == ""
    for number in ("671,026,419,200", "37,552,297,472", "36,625,618,432", "11,610,068,224", "684,531,386,000"):
        assert number in done.stdout
    for text in ("219.75 G", "61.40 G", "281.16 G", "4,997,120", "70,272", "further 0", "11,507,286,272"):
        assert text in done.stdout, text


@pytest.mark.parametrize("name", PRESETS)
def test_parts_and_layers_add_up_to_the_total(name: str):
    plan = plans.make(PRESETS[name], name=name)
    found = plan["parameters"]
    assert sum(part["n_params"] for part in found["parts"]) == found["total"] == found["main"] + found["further"]
    assert sum(part["n_params"] for part in found["parts"] if part["is_trainable"]) == found["trainable"]
    assert sum(part["share"] for part in found["parts"]) == pytest.approx(1.0)
    assert sum(layer["n_params"] for layer in plan["layers"]) == found["total"]
    assert all(sum(layer["parts"].values()) == layer["n_params"] for layer in plan["layers"])
    flops = plan["flops_per_token"]
    assert (
        flops["main"]
        == flops["parameters"] + flops["attention"]
        == count.flops_per_token(PRESETS[name], flops["seq_len"])
    )
    own = [kind["n_bytes"] for kind in plan["cache"] if kind["is_own"]]
    assert own == [count.kv_bytes_per_token(PRESETS[name])]
    rank = plan["rank"]
    assert rank["total"] == rank["weights"] + rank["gradients"] + rank["optimizer"] + rank["activations"]


@pytest.mark.parametrize("name", PRESETS)
def test_the_printed_table_adds_up(cli: Cli, name: str):
    done = cli("plan", name)
    lines = done.stdout.split("sums")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    numbers = [int(row[2].replace(",", "")) for row in cells if row[2]]
    assert sum(numbers[:-1]) == numbers[-1] == count.n_params(PRESETS[name])


def test_layers_that_are_alike_stand_together_and_add_up(cli: Cli):
    table = cli("plan", "deepseek-v3", "--layers").stdout.split("by layer")[1].split("sums")[0]
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in table.splitlines() if line[0] == "│"]
    assert [row[0] for row in rows if row[0]] == ["outside", "0 to 2", "3 to 60", "further 0", "total"]
    numbers = [int(row[3].replace(",", "")) for row in rows if row[1] == "sum"]
    assert sum(numbers) == count.n_params(PRESETS["deepseek-v3"]) == int(rows[-1][3].replace(",", ""))
    assert ["", "sum", "11,507,286,272", f"{58 * 11_507_286_272:,}"] in rows


def test_a_narrow_terminal_cuts_no_number(cli: Cli):
    done = cli("plan", "deepseek-v3", "--layers", "--released", env=dict(os.environ, COLUMNS="80"))
    for number in ("682,636,487,424", "653,908,770,816", "682,636,472,320", "684,531,386,000"):
        assert number in done.stdout


def test_json_has_the_same_keys_for_every_model(cli: Cli):
    dense, sparse = (json.loads(cli("plan", name, "--json").stdout) for name in ("gpt2-small", "deepseek-v3"))
    for plan in (dense, sparse):
        assert plan.keys() == KEYS.keys()
        assert all(isinstance(plan[key], kind) for key, kind in KEYS.items())
        for part in plan["parameters"]["parts"]:
            assert part.keys() == {"name", "formula", "n_params", "is_trainable", "share"}
        assert [kind["kind"] for kind in plan["cache"]] == ["MHA", "GQA", "MQA", "MLA"]
        assert plan["training"] is plan["released"] is plan["check"] is None
    for key in ("parameters", "flops_per_token", "rank", "config"):
        assert dense[key].keys() == sparse[key].keys()
    assert sparse["parameters"]["activated"] == 37_552_297_472
    assert dense["flops_per_token"]["main"] == 855_166_464 and dense["flops_per_token"]["seq_len"] == 1024


def test_a_plan_takes_less_than_a_second_and_no_torch():
    def user_s(*words: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        subprocess.run([sys.executable, "-m", "gptrs", "plan", *words], check=True, capture_output=True)
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before

    assert min(user_s("deepseek-v3", "--layers", "--released") for _ in range(3)) < 1.0
    code = (
        "import sys; from gptrs import cli_plan; cli_plan.plan('deepseek-v3', layers=True, released=True);"
        "print('torch' in sys.modules, 'numpy' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stderr.split() == ["False", "False"]


def test_sizes_differ_as_asked(cli: Cli):
    done = cli("plan", "deepseek-v3", "n_layers=4", "dim=1024", "n_mtp_layers=0", "--json")
    plan = json.loads(done.stdout)
    assert (plan["config"]["n_layers"], plan["config"]["dim"], plan["config"]["inter_dim"]) == (4, 1024, 2633)
    assert plan["parameters"]["further"] == 0 and len(plan["layers"]) == 5
    assert plans.find("gpt2_small", ["position=sinusoidal", "dropout=0", "model.has_bias=false"]).position_limit is None


def test_the_model_of_a_run_is_planned_by_its_file_and_its_folder(cli: Cli, tmp_path: Path, gpt2_like: Tokenizer):
    file = tmp_path / "config.toml"
    file.write_text(
        '[run]\nname = "x"\n[tokenizer]\nvocab_size = 300\n[model]\ndim = 32\nn_layers = 2\nn_heads = 2\n'
        "[optim]\nlr = 1e-3\n[train]\nsteps = 1\nseq_len = 48\nglobal_batch = 2\nmicro_batch = 2\n"
    )
    plan = json.loads(cli("plan", file, "n_layers=3", "train.seq_len=40", "--json").stdout)
    sizes = [plan["config"][name] for name in ("vocab_size", "dim", "n_layers", "max_seq_len")]
    assert sizes == [300, 32, 3, 40] and plan["flops_per_token"]["seq_len"] == 40
    gpt2_like.save(tmp_path / "tokenizer.json")
    done = cli("plan", tmp_path)
    assert "memory of each of 1 ranks, MiB" in done.stdout and "at 48 positions" in done.stdout
    plan = json.loads(cli("plan", tmp_path, "--json").stdout)
    assert plan["config"]["vocab_size"] == gpt2_like.vocab_size == 2000
    assert plan["parameters"]["total"] == count.n_params(plans.ModelConfig(**plan["config"]))
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "gpt2-small").mkdir()  # an exported model, say: no run
    assert json.loads(cli("plan", "gpt2-small", "--json", cwd=tmp_path).stdout)["config"]["dim"] == 768
    done = cli("plan", file, "tokenizer.path=gone.json")
    assert done.returncode == 1 and "gone.json" in done.stderr and done.stderr.count("\n") == 1


def test_a_run_is_priced(cli: Cli):
    words = ("--tokens", "14.8e12", "--gpus", 2048, "--peak-tflops", 989, "--mfu", 0.4, "--price", 2)
    run = json.loads(cli("plan", "deepseek-v3", *words, "--json").stdout)["training"]
    flops = count.flops_per_token(PRESETS["deepseek-v3"], 4096, has_further=True) * 14.8e12
    assert run["flops"] == pytest.approx(flops)
    assert run["gpu_hours"] == pytest.approx(flops / (989e12 * 0.4) / 3600)
    assert (run["hours"], run["cost"]) == (pytest.approx(run["gpu_hours"] / 2048), pytest.approx(2 * run["gpu_hours"]))
    assert run["tokens_per_s"] == pytest.approx(14.8e12 / (run["hours"] * 3600))
    assert f"{run['gpu_hours']:,.0f}" in cli("plan", "deepseek-v3", *words).stdout
    split = ("--data-parallel", 2, "--expert-parallel", 4, "--tensor-parallel", 2)
    plan = json.loads(cli("plan", "deepseek-v3", *split, "--tokens", 1e9, "--json").stdout)
    assert plan["training"]["gpus"] == plan["rank"]["split"]["world"] == 16 and plan["training"]["cost"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("deepseek-v4",), "got 'deepseek-v4'; hint: did you mean 'deepseek-v3'"),
        (("gone.toml",), "expected a config file, found none at gone.toml"),
        (("gpt2-small", "n_layer=2"), "unknown key model.n_layer; hint: did you mean model.n_layers"),
        (("gpt2-small", "n_layers"), "expected key=value, got 'n_layers'; hint: n_layers=4"),
        (("gpt2-small", "dim=wide"), "expected dim of the kind of 768, got 'wide'"),
        (("gpt2-small", "dropout=much"), "expected dropout of the kind of 0.0, got 'much'"),
        (("gpt2-small", "has_bias=1"), "expected has_bias of the kind of True, got 1"),
        (("gpt2-small", "n_heads=7"), "n_heads (7) must divide dim (768); hint: use n_heads=6 or dim=770"),
        (("gpt2-small", "--seq-len", "2000"), "seq_len must be from 1 to max_seq_len (1024), got 2000"),
        (("gpt2-small", "--released"), "expected a model without linear biases and with a head of its own"),
        (("gpt2-small", "--expert-parallel", "2"), "expert parallelism (2) needs experts"),
        (("deepseek-v3", "--tensor-parallel", "3"), "tensor parallelism (3) must divide the kv heads (128)"),
        (("gpt2-small", "--tokens", "1e9", "--mfu", "40"), "mfu must be above 0 and at most 1, got 40.0; hint: 0.4"),
        (("gpt2-small", "=2"), "expected key=value, got '=2'; hint: n_layers=4"),
        (("gpt2-small", "--tokens", "1e300", "--peak-tflops", "1e-300"), "of a run that ends, got inf GPU hours"),
        (("gpt2-small", "--tokens", "nan"), "tokens must be a positive number, got nan"),
        (("gpt2-small", "--tokens", "1", "--price", "-1"), "price must be 0 or more, got -1.0"),
        (("gpt2-small", "--plot", "plan.txt"), "--plot must be a .png file in a folder that exists, got plan.txt"),
    ],
)
def test_mistakes_are_one_line(cli: Cli, words: tuple[str, ...], message: str):
    done = cli("plan", *words)
    assert done.returncode == 1 and done.stdout == ""
    assert message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [("--price", 2), ("--gpus", 8), ("--mfu", 0.5), ("--peak-tflops", 312)])
def test_settings_of_a_run_without_tokens_are_a_wrong_command_line(cli: Cli, words: tuple[object, ...]):
    assert cli("plan", "gpt2-small", *words).returncode == 2


@pytest.mark.parametrize("name", ["gpt2-small", "deepseek-v3"])
def test_the_picture_is_a_png(cli: Cli, tmp_path: Path, name: str):
    pytest.importorskip("matplotlib")
    done = cli("plan", name, "--plot", tmp_path / "plan.png")
    assert done.returncode == 0, done.stderr
    data = (tmp_path / "plan.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) > 10_000


def test_the_check_builds_deepseek_v3_in_little_memory():
    code = (
        "import resource; from gptrs import plan; found = plan.check(plan.find('deepseek-v3'));"
        # ru_maxrss would be that of the process that started this one, where it was larger
        "kib = next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'));"
        "user_s = resource.getrusage(resource.RUSAGE_SELF).ru_utime;"
        "print(len(found['differences']), found['n_tensors'], kib, user_s)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    differences, tensors, kib, user_s = map(float, done.stdout.split())
    assert differences == 0 and tensors == 925
    assert kib * 1024 < 1e9 and user_s < 15


def test_a_difference_is_named_and_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The check is not blind: formulas of a model with one norm less do not fit the built one."""
    from gptrs import cli_plan

    whole = count.weights
    monkeypatch.setattr(
        count, "weights", lambda config: (w for w in whole(config) if (w.part, w.layer) != ("norms", ""))
    )
    with pytest.raises(SystemExit) as stopped:
        cli_plan.plan("gpt2-small", check=True)
    assert stopped.value.code == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors == [
        "error: norms: 36,864 by formula, 38,400 built",
        "error: layer outside: 39,383,808 by formula, 39,385,344 built",
    ]


def test_a_check_that_agrees_says_so(cli: Cli):
    done = cli("plan", "deepseek-tiny", "--check")
    assert done.returncode == 0 and done.stdout.endswith("agree, part by part and layer by layer\n")
    checked = json.loads(cli("plan", "deepseek-tiny", "--check", "--json").stdout)["check"]
    assert checked["differences"] == [] and checked["n_tensors"] > 50
