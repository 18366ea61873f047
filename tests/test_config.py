"""Settings: TOML to dataclasses and back, overrides, and errors that name the key."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args, get_type_hints

import pytest

from gptrs import config
from gptrs.train.config import PretrainConfig, load


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    steps: int
    rate: float = 0.5
    is_loud: bool = False
    words: tuple[str, ...] = ()
    pair: tuple[float, ...] = (0.9, 0.95)
    mode: Literal["auto", "cpu"] = "auto"
    limit: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outer:
    train: Inner


def build(**values: object) -> Inner:
    return config.build(Outer, {"train": {"steps": 1, **values}}).train


def overridden(*overrides: str) -> Inner:
    return config.build(Outer, config.override(Outer, {"train": {"steps": 1, "limit": 3}}, overrides)).train


def test_a_file_and_an_override_make_a_config(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[train]\nsteps = 300\nrate = 1\n")
    assert config.load(Outer, file, ["train.steps=10"]).train == Inner(steps=10, rate=1.0)


def test_overrides_are_read_as_the_field_asks() -> None:
    assert overridden("train.rate=1e-3").rate == 0.001
    assert overridden("train.rate=2").rate == 2.0
    assert overridden("train.is_loud=true").is_loud is True
    assert overridden("train.words=a.txt,b c.txt").words == ("a.txt", "b c.txt")
    assert overridden('train.words=["a,b", "c"]').words == ("a,b", "c")
    assert overridden("train.words=").words == ()
    assert overridden("train.pair=0.9,0.99").pair == (0.9, 0.99)
    assert overridden("train.mode=cpu").mode == "cpu"
    assert overridden("train.limit=none").limit is None
    assert overridden("train.steps=1_000").steps == 1000
    assert overridden("train.steps=1", "train.steps=2").steps == 2


def test_a_text_override_is_taken_as_it_is() -> None:
    run = config.override(PretrainConfig, {}, ["run.name=1", "tokenizer.pattern=a=b|[x]"])
    assert run == {"run": {"name": "1"}, "tokenizer": {"pattern": "a=b|[x]"}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"step": 2}, "unknown key train.step; hint: did you mean train.steps"),
        ({"zzz": 2}, "unknown key train.zzz (in the config); hint: known names are steps, rate"),
        ({"rate": "fast"}, "train.rate must be a finite number, got 'fast'"),
        ({"rate": float("inf")}, "train.rate must be a finite number, got inf"),
        ({"rate": float("nan")}, "train.rate must be a finite number, got nan"),
        ({"rate": 10**400}, "train.rate must be a finite number, got 1000000"),
        ({"steps": 1.5}, "train.steps must be a whole number, got 1.5"),
        ({"steps": True}, "train.steps must be a whole number, got True"),
        ({"is_loud": 1}, "train.is_loud must be true or false, got 1"),
        ({"words": "a"}, "train.words must be a list, each item text, got 'a'"),
        ({"words": ["a", 1]}, "train.words[1] must be text, got 1"),
        ({"mode": "gpu"}, 'train.mode must be "auto" or "cpu", got \'gpu\''),
        ({"limit": "x"}, "train.limit must be a whole number (or unset), got 'x'"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_key_expected_and_got(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as error:
        build(**values)
    assert message in str(error.value).replace(" (in the config)", "") or message in str(error.value)


def test_missing_keys_sections_and_unknown_sections_are_named() -> None:
    with pytest.raises(ValueError, match=r"train\.steps is required \(a whole number\), got nothing"):
        config.build(Outer, {"train": {}})
    with pytest.raises(ValueError, match=r"^train is required \(a table\), got nothing \(in the config\)$"):
        config.build(Outer, {})
    with pytest.raises(ValueError, match=r"unknown section trian .*; hint: did you mean train"):
        config.build(Outer, {"trian": {}})
    with pytest.raises(ValueError, match="train must be a table, got 3"):
        config.build(Outer, {"train": 3})


def test_a_mistyped_name_is_told_before_what_is_missing_for_it() -> None:
    with pytest.raises(ValueError, match=r"^unknown key train\.stesp .*; hint: did you mean train\.steps$"):
        config.build(PretrainConfig, {"run": {}, "train": {"stesp": 4}})
    with pytest.raises(ValueError, match=r"^unknown section trian .*; hint: did you mean train$"):
        config.build(PretrainConfig, {"run": {"nam": "x"}, "trian": {"steps": 4}})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps", "expected section.key=value, got 'train.steps'"),
        ("steps=3", "expected section.key=value, got 'steps=3'"),
        (".steps=3", "expected section.key=value, got '.steps=3'"),
        ("trian.steps=3", "unknown section trian; hint: did you mean train"),
        ("train.step=3", "unknown key train.step; hint: did you mean train.steps"),
        ("train.steps=many", "train.steps must be a whole number, got 'many'"),
        ("train.steps=1\ny = 2", "train.steps must be a whole number"),
        ("train.is_loud=yes", "train.is_loud must be true or false, got 'yes'"),
        ("train.words=[1", "train.words must be a list"),
    ],
)
def test_a_wrong_override_is_an_error(override: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        overridden(override)
    assert message in str(error.value)


def test_the_dump_reads_back_equal(tmp_path: Path) -> None:
    words = ('quote " and \\', "line\nbreak", "tab\t", "del\x7f", "bell\x07", "naïve ☃", "")
    before = Outer(train=Inner(steps=3, rate=1e-5, is_loud=True, words=words, limit=7, mode="cpu"))
    file = tmp_path / "dump.toml"
    file.write_text(config.dumps(before), encoding="utf-8")
    assert config.load(Outer, file) == before


def test_an_unset_key_is_left_out_of_the_dump() -> None:
    assert "limit" not in config.dumps(Outer(train=Inner(steps=3)))


def test_every_setting_that_none_unsets_stays_unset_in_the_dump(tmp_path: Path) -> None:
    file = tmp_path / "dump.toml"
    for section in dataclasses.fields(PretrainConfig):
        schema = get_type_hints(PretrainConfig)[section.name]
        for field, kind in get_type_hints(schema).items():
            if type(None) in get_args(kind) and section.name != "model":  # a model needs its sizes
                run = load("shakespeare_cpu", [f"{section.name}.{field}=none"])
                file.write_text(config.dumps(run), encoding="utf-8")
                assert load(file) == run, f"{section.name}.{field}"


def test_differences_name_each_changed_setting() -> None:
    one, other = Outer(train=Inner(steps=3)), Outer(train=Inner(steps=3, rate=0.1, limit=2))
    assert config.differences(one, other) == [("train.rate", 0.5, 0.1), ("train.limit", None, 2)]
    assert config.differences(one, one) == []


def test_configs_are_found_by_name_in_either_spelling_and_by_path(tmp_path: Path) -> None:
    assert config.find("shakespeare_cpu") == config.find("shakespeare-cpu")
    file = tmp_path / "own.toml"
    file.write_text("")
    assert config.find(file) == file
    with pytest.raises(
        FileNotFoundError, match=r"no config is named shakespear_cpu; hint: did you mean shakespeare_cpu"
    ):
        config.find("shakespear_cpu")
    with pytest.raises(FileNotFoundError, match="expected a config file, found none at"):
        config.find(tmp_path / "none.toml")


def test_a_file_that_is_not_toml_is_named(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text("[train\n")
    with pytest.raises(ValueError, match=r"expected TOML in .*bad\.toml, got: "):
        config.load(Outer, file)


@pytest.mark.parametrize("name", sorted(file.stem for file in config.CONFIGS.glob("*.toml")))
def test_every_config_of_the_package_is_complete_and_dumps_equal(name: str, tmp_path: Path) -> None:
    loaded = load(name)
    file = tmp_path / "dump.toml"
    file.write_text(config.dumps(loaded), encoding="utf-8")
    assert load(file) == loaded
    assert loaded.model.resolve(vocab_size=loaded.tokenizer.vocab_size, seq_len=loaded.train.seq_len)


def test_shakespeare_cpu_is_nanogpt_s_published_setting() -> None:
    run = load("shakespeare_cpu", ["data.text=x.txt"])
    model = run.model.resolve(vocab_size=256, seq_len=run.train.seq_len)
    assert (model.n_layers, model.n_heads, model.dim, model.inter_dim, model.max_seq_len) == (4, 4, 128, 512, 64)
    assert (run.train.steps, run.train.global_batch, model.dropout, run.data.val_fraction) == (2000, 12, 0.0, 0.1)
    assert (run.optim.lr, run.schedule.min_lr, run.schedule.warmup_steps) == (1e-3, 1e-4, 100)
    assert (run.optim.betas, run.optim.weight_decay, run.data.text) == ((0.9, 0.99), 0.1, ("x.txt",))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["train.micro_batch=5"],
            r"train.micro_batch must divide train.global_batch \(12\), got 5.*train.micro_batch=4",
        ),
        (["train.global_batch=2147483646", "train.micro_batch=4"], r"got 4.*hint: train.micro_batch=3"),  # at once
        (["train.global_batch=9223372036854775808"], r"train.global_batch must be at most 2147483647, got 92"),
        (["train.seq_len=2147483648"], r"train.seq_len must be at most 2147483647, got 2147483648"),
        (["speed.vocab_multiple=65537"], r"speed.vocab_multiple must be from 1 to 65536, got 65537"),
        (["data.val_fraction=1.5"], r"data.val_fraction must be between 0 and 1, got 1.5"),
        (["tokenizer.vocab_size=255"], r"tokenizer.vocab_size must be at least 256 .*, got 255"),
        (
            ["tokenizer.special_tokens=<a>,<a>", "tokenizer.vocab_size=300"],
            r"special_tokens must differ, got \['<a>', '<a>'\]",
        ),
        (["optim.betas=0.9"], r"optim.betas must be two numbers"),
        (["optim.lr=-1"], r"optim.lr must be positive, got -1.0"),
        (["optim.lr=nan"], r"optim.lr must be a finite number, got nan"),
        (["schedule.min_lr=1"], r"schedule.min_lr must be at most optim.lr \(0.001\), got 1.0"),
        (["data.train=a"], r"data.train and data.val belong together"),
        (["data.train=a", "data.val=b"], r"data.train needs the tokenizer that prepared it, got none"),
        (["data.text=t", "data.train=a", "data.val=b"], r"data.text and data.train exclude each other"),
        (["run.name=a/b"], r"run.name must be a file name, got 'a/b'"),
        (["run.threads=100000"], r"run.threads must be 0 \(all cores\) to 1024, got 100000"),
        (["train.steps=0"], r"train.steps must be at least 1, got 0"),
        (["train.keep_best=-1"], r"train.keep_best must be 0 or more, got -1"),
        (["train.checkpoint_async=2"], r"train.checkpoint_async"),
        (['sample.prompts=[""]'], r"sample.prompts must be texts that are not empty"),
        (["sample.top_k=-1"], r"sample.top_k must be 0 \(all tokens\) or more, got -1"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load("shakespeare_cpu", overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim.name=sgd"], 'optim.name must be "adamw" or "muon", got \'sgd\''),
        (["optim.momentum=1"], "optim.momentum must be from 0 to below 1, got 1.0"),
        (["optim.matrix_lr=1e-2"], "optim.matrix_lr is Muon's, optim.name is adamw .*hint: optim.name=muon"),
        (["schedule.decay_share=0"], "schedule.decay_share must be above 0, at most 1, got 0.0"),
        (["schedule.stages=0.5,0.4,0.9"], r"schedule.stages must be three rising numbers between 0 and 1, got"),
        (["schedule.stages=0.5,0.6"], r"schedule.stages must be three rising numbers between 0 and 1, got"),
        (
            ["schedule.kind=deepseek", "schedule.min_lr=0"],
            "at most a tenth of optim.lr for deepseek, got 0.0 .*; hint: ",
        ),
        (["train.batch_start=4"], "train.batch_start and train.batch_warmup_steps belong together, got one of them"),
        (
            ["train.batch_start=3", "train.batch_warmup_steps=5", "train.micro_batch=2"],
            r"train.batch_start must be a multiple of train.micro_batch \(2\) and at most .* \(12\), got 3",
        ),
        (["train.batch_start=4", "train.batch_warmup_steps=5"], r"a multiple of train.micro_batch \(12\)"),
    ],
)
def test_settings_of_optimizer_schedule_and_batch_are_checked(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load("shakespeare_cpu", overrides)


def test_a_growing_batch_is_counted_in_whole_microbatches() -> None:
    growing = ["train.batch_start=4", "train.batch_warmup_steps=8", "train.micro_batch=2"]
    train = load("shakespeare_cpu", growing).train
    assert [train.rows_at(step) for step in (0, 1, 2, 7, 8, 99)] == [4, 4, 6, 10, 12, 12]
    assert train.rows_before(10) == sum(train.rows_at(step) for step in range(10))
    assert load("shakespeare_cpu").train.rows_at(0) == 12
    assert [train.microbatches_before(step) for step in range(4)] == [0, 2, 4, 7]
    with pytest.raises(ValueError, match=r"batch_start must be a multiple of 6, for 3 ranks .* got 4; hint: .*start=6"):
        train.rows(3)


def test_the_model_follows_a_preset_or_explicit_sizes() -> None:
    explicit = load("shakespeare_cpu", ["model.inter_dim=64"]).model.resolve(vocab_size=300, seq_len=32)
    assert (explicit.vocab_size, explicit.inter_dim, explicit.max_seq_len) == (300, 64, 32)
    settings = dataclasses.replace(
        load("shakespeare_cpu").model, preset="gpt2-small", dim=None, n_layers=2, n_heads=None
    )
    preset = settings.resolve(vocab_size=300, seq_len=32)
    assert (preset.dim, preset.n_layers, preset.n_heads, preset.max_seq_len, preset.vocab_size) == (
        768,
        2,
        12,
        1024,
        300,
    )
    nothing = dataclasses.replace(load("shakespeare_cpu").model, dim=None)
    with pytest.raises(ValueError, match=r"a model without preset needs model\.dim; hint"):
        nothing.resolve(vocab_size=300, seq_len=32)


def test_the_settings_need_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, gptrs.train.config as c; c.load('demo'); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("log.trackers=wandb,neptune", 'log.trackers[1] must be "wandb" or "trackio" or "mlflow", got \'neptune\''),
        ("log.trackers=wandb,wandb", "log.trackers must be different names, got ['wandb', 'wandb']"),
        ("log.project=", "log.project must be a name, got ''"),
        ("log.stats_every=-1", "log.stats_every must be 0 (none) or more, got -1"),
        ("log.profile=3", "log.profile must be a first and a last update, from 1, got [3]"),
        ("log.profile=5,4", "log.profile must be a first and a last update, from 1, got [5, 4]"),
        ("log.profile=0,4", "log.profile must be a first and a last update, from 1, got [0, 4]"),
    ],
)
def test_what_a_run_tells_is_checked_before_it(override: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        load("shakespeare_cpu", [override])
    assert message in str(error.value)


def test_a_run_tells_what_it_is_asked_to() -> None:
    log = load("shakespeare_cpu", ["log.trackers=mlflow", "log.stats_every=50", "log.profile=20,22"]).log
    assert (log.trackers, log.project, log.stats_every, log.profile) == (("mlflow",), "gptrs", 50, (20, 22))
    assert load("shakespeare_cpu").log.trackers == ()
