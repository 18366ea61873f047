"""Token files of other programs from Python: export, a look at them with numpy alone, and import."""

import gzip
import json
import os
import signal
import struct
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from conftest import Cli, dataset_bytes
from gptrs import Dataset, Loader, Tokenizer, import_tokens, prepare

Ids = npt.NDArray[np.integer]


@pytest.fixture(scope="module")
def dataset(corpus: Path, gpt2_like: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The corpus in several small shards."""
    return prepare(corpus, gpt2_like, tmp_path_factory.mktemp("data") / "tokens", shard_tokens=100_000)


def nanogpt(folder: Path) -> list[Ids]:
    """The files' ids as nanoGPT reads them."""
    return [np.memmap(path, np.uint16, "r") for path in sorted(folder.glob("*.bin"))]


def llmc(folder: Path) -> list[Ids]:
    """The files' ids as llm.c reads them."""
    parts: list[Ids] = []
    for path in sorted(folder.glob("*.bin")):
        magic, version, n_tokens, *rest = np.fromfile(path, "<i4", 256).tolist()
        dtype = {(20240520, 1): "<u2", (20240801, 7): "<u4"}[magic, version]
        assert not any(rest)
        parts.append(np.fromfile(path, dtype, offset=1024))
        assert len(parts[-1]) == n_tokens
    return parts


def megatron(folder: Path) -> list[Ids]:
    """The documents of a Megatron-LM index."""
    index = (folder / "tokens.idx").read_bytes()
    magic, version, code, n_sequences, n_borders = struct.unpack_from("<9sQBQQ", index)
    assert (magic, version) == (b"MMIDIDX\0\0", 1)
    lengths = np.frombuffer(index, "<i4", n_sequences, 34)
    pointers = np.frombuffer(index, "<i8", n_sequences, 34 + 4 * n_sequences)
    borders = np.frombuffer(index, "<i8", n_borders, 34 + 12 * n_sequences)
    assert len(index) == 34 + 12 * n_sequences + 8 * n_borders
    dtype = np.dtype({8: "<u2", 4: "<i4"}[code])
    tokens = np.fromfile(folder / "tokens.bin", dtype)
    starts = pointers // dtype.itemsize
    sequences = [tokens[start : start + n] for start, n in zip(starts, lengths, strict=True)]
    return [np.concatenate(sequences[a:b]) for a, b in pairwise(borders)]


READERS = {"nanogpt": nanogpt, "llmc": llmc, "megatron": megatron}


@pytest.mark.parametrize("format", READERS)
def test_what_is_exported_is_read_by_others_and_comes_back(
    dataset: Dataset, gpt2_like: Tokenizer, tmp_path: Path, format: str
):
    paths = dataset.export(tmp_path, format, tokens_per_file=150_000)
    names = {"nanogpt": ["tokens.bin"], "megatron": ["tokens.bin", "tokens.idx"]}
    n_files = -(-len(dataset) // 150_000)
    assert [path.name for path in paths] == names.get(format, [f"tokens_{i:06}.bin" for i in range(n_files)])
    parts = READERS[format](tmp_path)
    assert np.concatenate(parts).tolist() == dataset[:].tolist()
    documents = dataset.doc_ids(0, len(dataset))
    if format == "megatron":
        assert [len(part) for part in parts] == np.bincount(documents).tolist()
    before = dataset_bytes(tmp_path)
    again = import_tokens(tmp_path, gpt2_like)
    assert again[:].tolist() == dataset[:].tolist()
    assert again.doc_ids(0, len(again)).tolist() == documents.tolist()
    assert again.manifest["n_bytes"] == dataset.manifest["n_bytes"]
    assert again.verify() > 2 * len(dataset)
    after = dataset_bytes(tmp_path)
    assert {name: after[name] for name in before} == before, "the files are not touched"
    assert Dataset(tmp_path).fingerprint == again.fingerprint == import_tokens(paths[0].parent, gpt2_like).fingerprint


def test_wide_ids_go_to_four_bytes_or_are_refused(wide: Tokenizer, tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in ("aabb cc", "", "hgfe dcba"))
    )
    np.array([1, 65_999, wide.eot_id, 65_998], "<u4").tofile(tmp_path / "a.npy")
    dataset = import_tokens(tmp_path / "a.npy", wide)
    assert dataset.dtype == np.uint32 and dataset[:].tolist() == [1, 65_999, wide.eot_id, 65_998]
    with pytest.raises(ValueError, match="token 1 is 65999, the format stores ids below 65536; hint: "):
        dataset.export(tmp_path / "nanogpt", "nanogpt")
    for format in ("llmc", "megatron"):
        dataset.export(tmp_path / format, format)
        assert np.concatenate(READERS[format](tmp_path / format)).tolist() == dataset[:].tolist()
        assert import_tokens(tmp_path / format, wide)[:].tolist() == dataset[:].tolist()
    with pytest.raises(ValueError, match="expected one of the formats nanogpt, llmc, megatron, got 'olmo'"):
        dataset.export(tmp_path / "olmo", "olmo")  # type: ignore[arg-type]


def test_a_loader_gives_the_batches_of_the_shards(dataset: Dataset, gpt2_like: Tokenizer, tmp_path: Path):
    dataset.export(tmp_path, "llmc", tokens_per_file=70_000)
    with (
        Loader(import_tokens(tmp_path, gpt2_like), seq_len=64, global_batch=4, seed=3, device="numpy") as imported,
        Loader(dataset, seq_len=64, global_batch=4, seed=3, device="numpy") as prepared,
    ):
        for _ in range(50):
            ours, theirs = next(imported), next(prepared)
            assert ours.tokens.tolist() == theirs.tokens.tolist() and ours.targets.tolist() == theirs.targets.tolist()


def test_a_changed_file_is_found_when_it_is_opened_read_or_imported(gpt2_like: Tokenizer, tmp_path: Path):
    ids = np.arange(100_000, dtype="<u2") % 1000
    path = tmp_path / "train.bin"
    ids.tofile(path)
    data = import_tokens(path, gpt2_like)
    with path.open("r+b") as file:
        file.seek(150_000)
        file.write(b"\1\2")
    assert data[:10].tolist() == list(range(10))
    with pytest.raises(ValueError, match=r"train\.bin is damaged: block 2 has digest"):
        Dataset(tmp_path)[70_000:70_010]
    with pytest.raises(ValueError, match="block 2"):
        data.verify()
    with pytest.raises(ValueError, match=r"made with other files; hint: remove its manifest\.json"):
        import_tokens(path, gpt2_like)
    ids[:-1].tofile(path)
    with pytest.raises(ValueError, match="expected 200000 bytes, got 199998"):
        Dataset(tmp_path)


def test_olmo_and_datatrove_bring_their_documents(gpt2_like: Tokenizer, tmp_path: Path):
    ids = np.arange(12, dtype="<u2")
    for folder in ("olmo", "datatrove"):
        (tmp_path / folder).mkdir()
    ids.tofile(tmp_path / "olmo" / "part-0.npy")
    with gzip.open(tmp_path / "olmo" / "part-0.csv.gz", "wt") as file:
        file.write('0,5,a,"x,y",1\n5,12,b,z,2\n')
    ids.tofile(tmp_path / "datatrove" / "0_tokens.ds")
    np.array([5, 12], "<u8").tofile(tmp_path / "datatrove" / "0_tokens.ds.index")
    (tmp_path / "datatrove" / "0_tokens.ds.metadata").write_text("gpt2|2\n12\n12 T")
    for folder in ("olmo", "datatrove"):
        data = import_tokens(tmp_path / folder, gpt2_like)
        assert data[:].tolist() == ids.tolist() and data.doc_ids(0, 12).tolist() == [0] * 5 + [1] * 7
    with gzip.open(tmp_path / "olmo" / "part-0.csv.gz", "wt") as file:
        file.write("0,5\n6,12\n")
    (tmp_path / "olmo" / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r'expected "5,END,\.\.\." in line 2, got "6,12'):
        import_tokens(tmp_path / "olmo", gpt2_like)


def test_the_commands_import_export_verify_and_show(dataset: Dataset, gpt2_like: Tokenizer, tmp_path: Path, cli: Cli):
    gpt2_like.save(tmp_path / "tok.json")
    out = tmp_path / "out"
    export = cli("data", "export", dataset.path, out, "--format", "nanogpt")
    assert export.returncode == 0 and export.stdout == f"{out}/tokens.bin: {2 * len(dataset)} bytes\n"
    end = cli("data", "import", out / "*.bin", "--tokenizer", tmp_path / "tok.json", "--format", "nanogpt")
    data = Dataset(out)
    counts = f"{len(data)} tokens, {data.n_documents} documents"
    assert end.returncode == 0 and end.stdout == f"{out}: {counts}, fingerprint {data.fingerprint}\n"
    verify = cli("data", "verify", out).stdout.splitlines()
    assert verify[0].endswith(f"fingerprint {data.fingerprint}") and verify[1].startswith("1 shard, ")
    options = ("--seq-len", 8, "--global-batch", 3, "--seed", 5)
    lines = cli("data", "show", out, "--batch", 7, *options).stdout
    assert lines == cli("data", "show", out, 7, *options).stdout
    shown = json.loads(cli("data", "show", out, "--batch", 7, *options, "--json", "-t", tmp_path / "tok.json").stdout)
    assert [" ".join(map(str, row["ids"])) for row in shown["rows"]] == [
        line.split(": ")[1] for line in lines.splitlines()
    ]
    assert [row["text"] for row in shown["rows"]] == [gpt2_like.decode(row["ids"]) for row in shown["rows"]]
    assert shown["batch"] == 7 and shown["fingerprint"] == data.fingerprint
    assert "expected one batch" in cli("data", "show", out, 7, "--batch", 8).stderr
    refused = cli("data", "show", out, 7, "--pattern", "gpt2")
    assert refused.returncode == 2 and "--pattern goes with --tokenizer" in " ".join(refused.stderr.split())
    facts = json.loads(cli("data", "inspect", out, "--json").stdout)
    assert facts["tokens"] == len(data) and facts["shards"][0]["name"] == "tokens.bin.gti"
    end = cli("data", "import", dataset.path / "manifest.json", "--tokenizer", tmp_path / "tok.json")
    assert end.returncode == 1 and "expected a token file that ends in .bin, .ds or .npy" in end.stderr


def test_ctrl_c_ends_an_import_and_leaves_nothing(gpt2_like: Tokenizer, tmp_path: Path):
    with (tmp_path / "zeros.bin").open("wb") as file:
        file.truncate(1 << 40)  # takes no space, and hours to read
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        import_tokens(tmp_path / "zeros.bin", gpt2_like)
    assert time.monotonic() - start < 5
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "zeros.bin"]


def test_bad_arguments_are_refused_and_leave_nothing(gpt2_like: Tokenizer, tmp_path: Path):
    np.zeros(10, "<u2").tofile(tmp_path / "a.bin")
    for options, message in (
        ({"format": "mds"}, "expected one of the formats nanogpt, llmc, megatron, datatrove, olmo, got"),
        ({"dtype": "int64"}, "expected the type uint16 or uint32"),
        ({"eot_at": "middle"}, "eot_at must be"),
        ({"threads": -1}, "threads must be"),
        ({"format": "llmc"}, "expected a header of 1024 bytes"),
        ({"format": "megatron"}, r"a\.idx"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            import_tokens(tmp_path / "a.bin", gpt2_like, **options)
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == ["a.bin"]
