"""Loss bits: of fine-tuning rows the answers alone are predicted, from the files to the batch."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from gptrs import Dataset, Loader, Mixture, Tokenizer, prepare
from gptrs.cli import app
from gptrs.tasks import merge_tasks, prepare_task

IGNORED = -100
TEMPLATE = "Q: {prompt}\nA: {answer}"


def write(path: Path, pairs: list[tuple[str, str]]) -> Path:
    path.write_text("".join(json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in pairs), encoding="utf-8")
    return path


def expected(tokenizer: Tokenizer, pairs: list[tuple[str, str]]) -> tuple[list[int], list[bool]]:
    """Tokens and bits from the texts alone: a token counts when its last byte is the answer's."""
    tokens, bits = [], []
    for prompt, answer in pairs:
        n_before = len(f"Q: {prompt}\nA: ".encode())
        end = 0
        for token in tokenizer.encode_ordinary(f"Q: {prompt}\nA: {answer}"):
            end += len(tokenizer.id_to_token(token))
            tokens.append(token)
            bits.append(end > n_before)
        assert end == n_before + len(answer.encode())
        tokens.append(tokenizer.eot_id)
        bits.append(True)
    return tokens, bits


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str]]:
    return [(f"what is {i} and {i * i}?", f"it is {i + i * i}, of course" * (i % 4)) for i in range(300)]


@pytest.fixture(scope="module")
def dataset(gpt2_like: Tokenizer, pairs: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("loss")
    lines = write(folder / "a.jsonl", pairs)
    out = folder / "tokens"
    return prepare(lines, gpt2_like, out, text_field=TEMPLATE, loss_fields=["answer"], shard_tokens=1000)


def test_a_batch_by_hand(tmp_path: Path):
    tokenizer = Tokenizer.train_from_iterator(["ab"], 257)  # bytes, and 256 for the end
    lines = write(tmp_path / "a.jsonl", [("x", "yz"), ("", "w")])
    data = prepare(lines, tokenizer, tmp_path / "out", text_field="{prompt}>{answer}", loss_fields=["answer"])
    assert data.has_loss_bits and data.manifest["loss_fields"] == ["answer"]
    assert data.loss_bits(0, 8).tolist() == [False, False, True, True, True, False, True, True]
    assert data.loss_bits(3, 3).tolist() == [True, True, False] and data.verify(progress=False) > 0
    with Loader(data, seq_len=7, global_batch=1, shuffle=False, device="numpy") as loader:
        batch = next(loader)
    assert batch.tokens.tolist() == [[*b"x>yz", 256, *b">w"]]
    assert batch.targets.tolist() == [[IGNORED, *b"yz", 256, IGNORED, *b"w", 256]]
    with Loader(data, seq_len=8, global_batch=1, pack="bestfit", device="numpy") as loader:
        batch = next(loader)
    assert batch.targets.tolist() == [[IGNORED, *b"yz", 256, IGNORED, *b"w", 256, IGNORED]]


def test_bits_follow_from_the_texts(dataset: Dataset, gpt2_like: Tokenizer, pairs: list[tuple[str, str]]):
    tokens, bits = expected(gpt2_like, pairs)
    assert dataset[:].tolist() == tokens
    assert dataset.loss_bits(0, len(dataset)).tolist() == bits
    assert 0.2 < np.mean(bits) < 0.8
    with pytest.raises(ValueError, match="not in the dataset"):
        dataset.loss_bits(len(dataset), 1)


@settings(max_examples=40, deadline=None)
@given(pairs=st.lists(st.tuples(st.text(max_size=20), st.text(max_size=30)), min_size=1, max_size=8))
def test_bits_follow_from_any_texts(
    pairs: list[tuple[str, str]], gpt2_like: Tokenizer, tmp_path_factory: pytest.TempPathFactory
):
    folder = tmp_path_factory.mktemp("any")
    lines = write(folder / "a.jsonl", pairs)
    data = prepare(lines, gpt2_like, folder / "out", text_field=TEMPLATE, loss_fields=["answer"], shard_tokens=17)
    tokens, bits = expected(gpt2_like, pairs)
    assert (data[:].tolist(), data.loss_bits(0, len(data)).tolist()) == (tokens, bits)


def test_threads_and_tasks_write_the_same_bytes(
    dataset: Dataset, gpt2_like: Tokenizer, pairs: list[tuple[str, str]], tmp_path: Path
):
    lines = write(tmp_path / "a.jsonl", pairs)
    options = {"text_field": TEMPLATE, "loss_fields": ["answer"], "shard_tokens": 1000, "progress": False}
    assert prepare(lines, gpt2_like, tmp_path / "threads", threads=3, **options).fingerprint == dataset.fingerprint
    for task in (1, 0):
        prepare_task(lines, gpt2_like, tmp_path / "tasks", task, 2, **options)
    merge_tasks(lines, gpt2_like, tmp_path / "tasks", 2, **options)
    names = sorted(path.name for path in dataset.path.iterdir() if path.name != ".lock")
    assert all((tmp_path / "tasks" / name).read_bytes() == (dataset.path / name).read_bytes() for name in names)


@pytest.mark.parametrize("pack", ["stream", "bestfit"])
def test_targets_are_the_answers(dataset: Dataset, pack: str):
    tokens, bits = dataset[:].astype(np.int64), dataset.loss_bits(0, len(dataset))
    doc_ids = dataset.doc_ids(0, len(dataset))
    with Loader(dataset, seq_len=48, global_batch=4, seed=2, pack=pack, device="numpy") as loader:
        for _ in range(60):
            batch = next(loader)
            for start, inputs, targets in zip(batch.starts, batch.tokens, batch.targets, strict=True):
                if pack == "stream":
                    at = np.arange(start + 1, start + 49)
                    assert np.array_equal(inputs, tokens[start : start + 48])
                    assert np.array_equal(targets, np.where(bits[at], tokens[at], IGNORED))
            if pack == "bestfit":
                _check_packed(batch.tokens, batch.targets, batch.doc_ids, batch.positions, tokens, bits, doc_ids)


def _check_packed(inputs, targets, row_doc_ids, positions, tokens, bits, doc_ids):
    """Each target by its document: where the document has the token behind, if that is its answer's."""
    starts = np.searchsorted(doc_ids, np.arange(doc_ids[-1] + 1))
    for b, t in np.ndindex(inputs.shape):
        document = row_doc_ids[b, t]
        if document < 0:
            assert targets[b, t] == IGNORED
            continue
        begin = starts[document]
        text = tokens[begin : starts[document + 1] if document + 1 < len(starts) else None]
        first = t - positions[b, t]
        # A document of more than 48 tokens is cut into pieces at multiples of 48.
        places = [
            p
            for p in range(positions[b, t], len(text), 48)
            if np.array_equal(text[p - positions[b, t]], inputs[b, first])
        ]
        follows = {tokens[begin + p + 1] if p + 1 < len(text) and bits[begin + p + 1] else IGNORED for p in places}
        assert targets[b, t] in follows


def test_a_mixture_takes_datasets_with_bits_and_without(dataset: Dataset, gpt2_like: Tokenizer, tmp_path: Path):
    (tmp_path / "a.txt").write_text("plain text, all of it to be predicted. " * 200)
    plain = prepare(tmp_path / "a.txt", gpt2_like, tmp_path / "out")
    assert not plain.has_loss_bits and plain.loss_bits(0, 5).all() and "loss_fields" not in plain.manifest
    mixture = Mixture({"tuning": dataset, "plain": plain}, {"tuning": 1, "plain": 1})
    with Loader(mixture, seq_len=32, global_batch=16, device="numpy") as loader:
        batch = next(loader)
    ignored = dict.fromkeys(("tuning", "plain"), 0)
    for name, targets in zip(batch.sources, batch.targets, strict=True):
        ignored[name] += int((targets == IGNORED).sum())
    assert ignored["tuning"] > 0 and ignored["plain"] == 0


def test_a_run_goes_on_with_other_ranks(dataset: Dataset):
    options = {"seq_len": 32, "global_batch": 8, "seed": 3, "device": "numpy"}
    with Loader(dataset, **options) as loader:
        whole = [next(loader).targets for _ in range(6)]
    with Loader(dataset, **options) as loader:
        first = [next(loader).targets for _ in range(3)]
        state = loader.state_dict()
    ranks = [Loader(dataset, rank=rank, world_size=2, micro_batch=2, **options) for rank in (0, 1)]
    for loader in ranks:
        loader.load_state_dict(state)
    rest = [np.concatenate([next(loader).targets for _ in range(2) for loader in ranks]) for _ in range(3)]
    for loader in ranks:
        loader.close()
    assert np.array_equal(np.stack(first + rest), np.stack(whole))


def test_the_command_takes_the_fields(
    dataset: Dataset, gpt2_like: Tokenizer, pairs: list[tuple[str, str]], tmp_path: Path
):
    gpt2_like.save(tmp_path / "tokenizer.json")
    lines = write(tmp_path / "a.jsonl", pairs)
    command = ["prepare", str(lines), "-t", str(tmp_path / "tokenizer.json"), "-o", str(tmp_path / "out")]
    command += ["--text-field", TEMPLATE, "--shard-tokens", "1000", "--loss-field"]
    result = CliRunner().invoke(app, [*command, "answer"])
    assert result.exit_code == 0 and Dataset(tmp_path / "out").fingerprint == dataset.fingerprint
    for more, reason in (["prompt", "other loss_fields"], ["reply", "among the fields"]):
        assert reason in str(CliRunner().invoke(app, [*command, more]).exception)


def test_a_template_on_the_command_line_has_escapes_as_a_shell_passes_them(gpt2_like: Tokenizer, tmp_path: Path):
    gpt2_like.save(tmp_path / "tokenizer.json")
    lines = write(tmp_path / "a.jsonl", [("ask é", "yes")])
    command = ["prepare", str(lines), "-t", str(tmp_path / "tokenizer.json"), "-o", str(tmp_path / "out"), "--no-eot"]
    assert CliRunner().invoke(app, [*command, "--text-field", r"{prompt}\n→{answer}"]).exit_code == 0
    assert gpt2_like.decode(Dataset(tmp_path / "out")[:]) == "ask é\n→yes"
    refused = CliRunner().invoke(app, [*command, "--text-field", r"{prompt}\x{answer}"])
    assert "--text-field has an escape" in str(refused.exception)


def test_what_has_no_fields_is_refused(gpt2_like: Tokenizer, tmp_path: Path):
    (tmp_path / "a.txt").write_text("abc")
    with pytest.raises(ValueError, match=r"a\.txt has none; hint: "):
        prepare(tmp_path / "a.txt", gpt2_like, tmp_path / "out", loss_fields=["text"])
    with pytest.raises(TypeError):
        prepare(write(tmp_path / "b.jsonl", [("a", "b")]), gpt2_like, tmp_path / "out", loss_fields="text")
    assert not (tmp_path / "out").exists()


def test_rows_of_a_parquet_file_have_the_bits_of_the_lines(
    gpt2_like: Tokenizer, dataset: Dataset, pairs: list[tuple[str, str]], tmp_path: Path
):
    prompts, answers = zip(*pairs, strict=True)
    rows = pa.table({"id": range(len(pairs)), "answer": answers, "prompt": prompts})
    pq.write_table(rows, tmp_path / "a.parquet", row_group_size=70)
    data = prepare(
        tmp_path / "a.parquet",
        gpt2_like,
        tmp_path / "out",
        text_field=TEMPLATE,
        loss_fields=["answer"],
        shard_tokens=1000,
    )
    assert data.fingerprint == dataset.fingerprint and data.manifest["shards"] == dataset.manifest["shards"]


def test_an_export_drops_loss_bits_only_when_it_is_told_to(dataset: Dataset, tmp_path: Path):
    with pytest.raises(ValueError, match=r"without loss bits.*hint: drop_loss_bits \(--drop-loss-bits\)"):
        dataset.export(tmp_path / "out", "nanogpt", progress=False)
    assert not (tmp_path / "out").exists()
    command = ["data", "export", str(dataset.path), str(tmp_path / "out"), "--format", "nanogpt"]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code != 0 and not (tmp_path / "out").exists()
    end = CliRunner().invoke(app, [*command, "--drop-loss-bits"])
    assert end.exit_code == 0 and "loss bits stayed behind" in end.stderr
    assert np.array_equal(np.fromfile(tmp_path / "out" / "tokens.bin", "<u2"), dataset[:])
