"""What a run is fed with: packed rows, mixtures and orders by the config, and each microbatch's share of its step."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from gptrs import trace
from gptrs.dataset import Dataset, prepare
from gptrs.loader import Loader
from gptrs.mixture import Mixture
from gptrs.model import ModelConfig, Transformer
from gptrs.model.loss import IGNORED
from gptrs.tokenizer import Tokenizer
from gptrs.train import config as configs
from gptrs.train import corpus, feed, pretrain, rundir
from gptrs.train.config import PretrainConfig
from gptrs.train.corpus import Rows
from gptrs.train.distributed import World
from gptrs.train.parts import Parts, pieces

WORDS = "a true friend accepts you as you are and you accept a friend who is true to you "
TINY = (
    *("run.threads=1", "model.dim=16", "model.n_layers=1", "model.n_heads=2", "model.dropout=0.1", "train.seq_len=16"),
    *("train.steps=6", "train.global_batch=4", "train.micro_batch=2", "train.log_every=1", "train.eval_every=100"),
    *("train.checkpoint_every=2", "optim.lr=1e-2", "schedule.warmup_steps=2", "sample.max_new_tokens=3"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer and three prepared datasets: web, code (a third of it) and val."""
    folder = tmp_path_factory.mktemp("feed")
    for name, n in (("web", 90), ("code", 30), ("val", 20)):
        lines = [json.dumps({"text": f"{name} {i} {WORDS[i % 40 : i % 40 + 7 * (i % 9)]}"}) for i in range(n)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    tokenizer = Tokenizer.train([folder / "web.jsonl"], 280, progress=False)
    tokenizer.save(folder / "tokenizer.json")
    for name in ("web", "code", "val"):
        prepare([folder / f"{name}.jsonl"], tokenizer, folder / name, progress=False)
    return folder


def tiny(folder: Path, directory: Path, *overrides: str) -> PretrainConfig:
    data = (f"data.val={folder / 'val'}", f"tokenizer.path={folder / 'tokenizer.json'}", f"run.dir={directory}")
    return configs.load("shakespeare_cpu", [*TINY, *data, *overrides])


def lines(directory: Path) -> list[dict[str, Any]]:
    timed = ("time_s", "tokens_per_s", "mfu", "memory_bytes")
    rows = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in row.items() if key not in timed} for row in rows]


@pytest.mark.parametrize("attention", ["stream", "documents"])
def test_packed_rows_train_and_go_on_exactly(
    folder: Path, tmp_path: Path, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = (f"data.train={folder / 'web'}", "data.pack=bestfit", f"train.attention={attention}")
    result = pretrain.run(tiny(folder, tmp_path / "one", *overrides))
    found = lines(tmp_path / "one")
    assert found[-1]["n_targets"] == Dataset(folder / "val").n_tokens - 1, "evaluated on the held-out stream as always"
    assert result.val_loss == found[-1]["val_loss"] < found[0]["loss"] - 0.2

    def fail(self: pretrain.Session, update: Any) -> None:
        original(self, update)
        if update.step == 5:
            raise KeyboardInterrupt

    original = pretrain.Session._log
    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(pretrain.Session, "_log", fail)
        pretrain.run(tiny(folder, tmp_path / "two", *overrides))
    pretrain.run(tiny(folder, tmp_path / "two", *overrides))
    assert lines(tmp_path / "two") == found


@pytest.mark.parametrize("order", ["blocks", "sequential"])
def test_a_mixture_trains_in_any_order(folder: Path, tmp_path: Path, order: str) -> None:
    overrides = (f"data.mixture={folder / 'web'},{folder / 'code'}", "data.weights=3,1", f"data.order={order}")
    config = tiny(folder, tmp_path / "run", *overrides)
    pretrain.run(config)
    losses = [line["loss"] for line in lines(tmp_path / "run") if line["kind"] == "train"]
    assert len(losses) == 6 and losses[-1] < losses[0] - 0.2
    data = feed.training_data(config.data)
    assert isinstance(data, Mixture)
    with feed.loader(config, data, World.alone(torch.device("cpu"))) as loader:
        assert loader.shuffle == ("blocks" if order == "blocks" else False)
        names = [Path(name).name for _ in range(2) for name in next(loader).sources]
    assert sorted(names) == ["code", "web", "web", "web"]
    own = rundir.outcome(tmp_path / "run")
    assert own is not None and own.data[0] == data.fingerprint


def test_a_mixture_that_ends_before_the_last_step_is_refused(folder: Path, tmp_path: Path) -> None:
    overrides = (f"data.mixture={folder / 'web'},{folder / 'code'}", "data.max_epochs=1", "data.weights=1,3")
    with pytest.raises(ValueError, match=r"expected a mixture of the 4,000 rows .*, got one that ends after \d+ by"):
        pretrain.run(tiny(folder, tmp_path / "run", *overrides, "train.steps=1000"))
    assert not (tmp_path / "run" / "checkpoints").exists()
    pretrain.run(tiny(folder, tmp_path / "run", *overrides, "train.steps=2"), is_fresh=True)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data.mixture=a,b", "data.train=c"), "data.mixture needs data.val and no data.train, got data.train too"),
        (("data.mixture=a,b", "data.val=none"), "data.mixture needs data.val and no data.train, got none"),
        (("data.mixture=a,a",), "data.mixture must be different datasets"),
        (("data.mixture=a,./b/../a/",), "data.mixture must be different datasets"),
        (("data.mixture=a,b", "data.text_field=body"), r"text_field is of data.text .* data.mixture, got 'body'"),
        (("data.train=a", "data.val_fraction=0.2"), r"val_fraction is of data.text .* data.train, got 0.2 .*; hint: "),
        (("data.mixture=a,b", "data.weights=1"), r"data.weights must be a share for each dataset .*, got \[1.0\]"),
        (("data.mixture=a,b", "data.weights=0,0"), "data.weights must be a share for each dataset"),
        (("data.mixture=a,b", "data.max_epochs=0"), "data.max_epochs must be at least 1, got 0"),
        (("data.mixture=a,b", "data.text=c"), "data.text and data.mixture exclude each other"),
        (("data.mixture=a,b", "tokenizer.path=none"), "data.mixture needs the tokenizer that prepared it"),
        (("data.train=a", "data.weights=1"), "data.weights belongs to data.mixture, got none"),
    ],
)
def test_data_settings_are_checked(folder: Path, tmp_path: Path, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(folder, tmp_path, *overrides)


@pytest.mark.parametrize("overrides", [("train.seq_len=5000",), ("train.global_batch=1000", "train.micro_batch=none")])
def test_data_that_is_shorter_than_a_step_is_refused(folder: Path, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"rows|tokens") as error:
        pretrain.run(tiny(folder, tmp_path / "run", f"data.train={folder / 'web'}", *overrides))
    assert "hint: " in str(error.value) and not (tmp_path / "run" / "checkpoints").exists()


# ── packed rows ──


def parts(attention: str = "stream") -> Parts:
    return Parts(mtp_weight=0.3, balance_weight=0.1, bias_speed=0.0, attention=attention, eot_id=279, n_further=1)  # type: ignore[arg-type]


def packed(folder: Path, micro_batch: int) -> Loader:
    return Loader(
        Dataset(folder / "web"), seq_len=32, global_batch=8, micro_batch=micro_batch, pack="bestfit", documents=True
    )


DEEPSEEK = ModelConfig.preset(
    "deepseek-tiny", vocab_size=280, dim=16, n_layers=2, n_heads=2, inter_dim=24, kv_lora_rank=8, moe_inter_dim=8
)


@pytest.mark.parametrize("attention", ["stream", "documents"])
def test_accumulation_over_packed_rows_equals_the_big_batch(folder: Path, attention: str) -> None:
    gradients = []
    for micro_batch in (8, 2, 1):
        model, given = Transformer(DEEPSEEK).double(), parts(attention)
        with packed(folder, micro_batch) as loader:
            rows = [next(loader) for _ in range(loader.micro_batches_per_step)]
            totals = torch.stack([given.counts(each) for each in rows]).sum(dim=0)
            for each in rows:
                given.loss(model, each, totals).backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for others in gradients[1:]:
        for one, other in zip(gradients[0], others, strict=True):
            torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


def test_the_pieces_of_packed_rows_are_the_loader_s(folder: Path) -> None:
    with packed(folder, 8) as loader:
        batch = next(loader)
        found, ends = pieces(batch), parts()._ends(batch)
        doc_ids = batch.doc_ids
    assert found is not None and ends is not None
    borders = doc_ids.diff(dim=-1) != 0
    assert torch.equal(found["doc_ids"].diff(dim=-1) != 0, borders) and torch.equal(ends[:, :-1], borders)
    assert torch.equal(found["positions"], batch.positions.long())
    assert (batch.targets[doc_ids < 0] == IGNORED).all() and bool((doc_ids < 0).any())
    assert int(((batch.tokens == 279) != ends).sum()) > 0, "ends of text alone would miss some borders"


def test_other_rows_have_no_pieces(folder: Path) -> None:
    with Loader(Dataset(folder / "web"), seq_len=16, global_batch=4) as loader:
        assert pieces(next(loader)) is None
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    assert pieces(Rows(tokens, tokens)) is None


@pytest.fixture(scope="module")
def asked(folder: Path) -> Path:
    """The tokenizer, and questions whose answers alone are to be predicted, prepared as a dataset."""
    pairs = [{"q": f"what is {i}? ", "a": f"it is {WORDS[i % 40 : i % 40 + 9]}"} for i in range(40)]
    (folder / "asked.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    prepare(
        [folder / "asked.jsonl"], tokenizer, folder / "asked", text_field="{q}{a}", loss_fields=["a"], progress=False
    )
    return folder / "asked"


def test_a_held_out_loss_is_that_of_the_tokens_to_be_predicted(folder: Path, asked: Path, tmp_path: Path) -> None:
    dataset = Dataset(asked)
    n = int(dataset.loss_bits(1, dataset.n_tokens - 1).sum())
    assert 0 < n < dataset.n_tokens / 2
    found = list(corpus.rows(dataset, seq_len=16, batch=3, device=torch.device("cpu")))
    targets = torch.cat([rows.targets.flatten() for rows in found])
    following = torch.from_numpy(dataset.read(1, dataset.n_tokens - 1).astype("int64"))
    bits = torch.from_numpy(dataset.loss_bits(1, dataset.n_tokens - 1))
    assert torch.equal(targets, torch.where(bits, following, IGNORED))
    assert torch.equal(torch.cat([rows.tokens.flatten() for rows in found])[1:], following[:-1]), "all are read"

    overrides = (f"data.train={asked}", f"data.val={asked}", "model.n_mtp_layers=1")
    result = pretrain.run(tiny(folder, tmp_path / "run", *overrides))
    *_, last = (line for line in lines(tmp_path / "run") if line["kind"] == "eval")
    assert last["n_targets"] == n
    answers = [json.loads(line)["a"] for line in (folder / "asked.jsonl").read_text().splitlines()]
    n_bytes = sum(map(len, answers))  # and an end of text after each, which has no byte
    assert result.bits_per_byte == pytest.approx(result.val_loss * n / n_bytes / math.log(2))
    counts = torch.bincount(following[bits]).double()
    assert result.unigram_entropy == pytest.approx(torch.distributions.Categorical(counts / n).entropy().item())


def test_further_tokens_are_guessed_where_they_are_to_be_predicted() -> None:
    torch.manual_seed(1)
    sizes = {"dim": 8, "inter_dim": 8, "n_layers": 1, "n_heads": 2, "n_mtp_layers": 1}
    model = Transformer(ModelConfig(vocab_size=11, max_seq_len=8, **sizes)).eval()
    tokens, targets = torch.randint(11, (2, 8)), torch.randint(11, (2, 8))
    targets[0, 2:] = IGNORED
    (found,) = trace.usage(model, [(tokens, targets)], eot_id=None, documents=lambda _: {}).further
    assert found.n_targets == 1 + 7
    whole = [(tokens[i : i + 1], targets[i : i + 1, :length]) for i, length in ((0, 2), (1, 8))]
    parts = [(ids[:, : wanted.shape[1]], wanted) for ids, wanted in whole]
    (expected,) = trace.usage(model, parts, eot_id=None, documents=lambda _: {}).further
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(expected))


def test_nothing_to_predict_is_said_before_the_first_update(folder: Path, asked: Path, tmp_path: Path) -> None:
    (folder / "mute.jsonl").write_text(json.dumps({"q": "what is that? ", "a": ""}) + "\n")
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    options: Any = {"text_field": "{q}{a}", "loss_fields": ["a"], "append_eot": False, "progress": False}
    prepare([folder / "mute.jsonl"], tokenizer, tmp_path / "mute", **options)
    config = tiny(folder, tmp_path / "run", f"data.train={asked}", f"data.val={tmp_path / 'mute'}")
    with pytest.raises(ValueError, match=r"expected tokens to be predicted in .*mute, got loss bits of none"):
        pretrain.run(config)


def test_a_part_of_text_alone_is_held_out_of_files_with_a_field(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("to be or not to be " * 20)
    (tmp_path / "in" / "c.jsonl").write_text('{"body": "that is the question"}\n' * 20)
    made = corpus.from_text(
        (str(tmp_path / "in"),), tmp_path, val_fraction=0.3, text_field="body", tokenizer_path=None, vocab_size=260,
        pattern="gpt2", special_tokens=("<|endoftext|>",), threads=1,
    )  # fmt: skip
    assert isinstance(made.train, Dataset)
    fields = {data.manifest["inputs"][0]["name"]: data.manifest["text_field"] for data in (made.train, made.val)}
    assert fields == {"a.txt": "text", "c.jsonl": "body"}
