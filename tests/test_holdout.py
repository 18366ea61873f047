"""Which text is held out: by rule, never by chance, order or machine."""

import json
import shutil
from pathlib import Path

import pytest

from gptrs import holdout


def test_a_single_file_keeps_its_last_part_out(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("0123456789")
    train, val = holdout.split([file], 0.3, tmp_path)
    assert [path.read_text() for path in train + val] == ["0123456", "789"]


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.35, 0.5, 0.77, 0.9])
def test_the_cut_never_breaks_a_character(tmp_path: Path, fraction: float) -> None:
    text = "aé☃𝄞" * 7 + "é"
    file = tmp_path / "text.txt"
    file.write_text(text, encoding="utf-8")
    train, val = holdout.split([file], fraction, tmp_path)
    parts = [path.read_text(encoding="utf-8") for path in train + val]
    assert "".join(parts) == text and all(parts)
    assert abs(len(parts[1].encode()) - fraction * len(text.encode())) < 4


def test_json_lines_are_cut_between_lines(tmp_path: Path) -> None:
    lines = [json.dumps({"text": "x" * i}) + "\n" for i in range(20)]
    file = tmp_path / "text.jsonl"
    file.write_text("".join(lines))
    for fraction in (0.1, 0.25, 0.5, 0.8):
        (train,), (val,) = holdout.split([file], fraction, tmp_path / "..")
        assert (train.suffix, val.suffix) == (".jsonl", ".jsonl")
        parts = [path.read_text().splitlines(keepends=True) for path in (train, val)]
        assert parts[0] + parts[1] == lines and all(parts)


def test_a_cut_that_falls_between_lines_stays_there(tmp_path: Path) -> None:
    file = tmp_path / "text.jsonl"
    file.write_text('{"text": "ab"}\n' * 4)
    _, (val,) = holdout.split([file], 0.5, tmp_path)
    assert len(val.read_text().splitlines()) == 2


@pytest.fixture
def many(tmp_path: Path) -> list[Path]:
    files = []
    for i in range(40):
        file = tmp_path / "corpus" / f"part{i % 3}" / f"{i}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{i} " * (50 + 13 * i % 97))
        files.append(file)
    return files


def test_of_several_files_whole_ones_reach_the_fraction(many: list[Path]) -> None:
    train, val = holdout.choose(many, 0.2)
    assert sorted(train + val) == sorted(many)
    held_out, total = (sum(file.stat().st_size for file in part) for part in (val, many))
    largest = max(file.stat().st_size for file in many)
    assert 0.2 * total <= held_out < 0.2 * total + largest


def test_the_choice_depends_on_names_not_on_order_or_place(many: list[Path], tmp_path: Path) -> None:
    _, val = holdout.choose(many, 0.2)
    _, turned = holdout.choose(many[::-1], 0.2)
    assert turned == val[::-1]
    shutil.move(tmp_path / "corpus", tmp_path / "moved")
    _, moved = holdout.choose([tmp_path / "moved" / file.relative_to(tmp_path / "corpus") for file in many], 0.2)
    assert [file.relative_to(tmp_path / "moved") for file in moved] == [
        file.relative_to(tmp_path / "corpus") for file in val
    ]


def test_a_larger_fraction_only_adds_files(many: list[Path]) -> None:
    assert set(holdout.choose(many, 0.1)[1]) < set(holdout.choose(many, 0.4)[1])


def test_folders_and_globs_become_files_each_once(many: list[Path], tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    (corpus / "notes.md").write_text("left out of the folder")
    for name in ("runs/a/config.toml", "runs/a/.lock", "runs/a/metrics.jsonl", "runs/a/data/val.txt"):
        (corpus / name).parent.mkdir(parents=True, exist_ok=True)
        (corpus / name).write_text("of a run, no corpus")
    assert holdout.files_of((str(corpus),)) == sorted(many)
    assert holdout.files_of((str(corpus / "part0" / "*.txt"), str(corpus))) == [
        *sorted((corpus / "part0").iterdir()),
        *(file for file in sorted(many) if file.parent.name != "part0"),
    ]
    assert holdout.files_of((str(corpus / "notes.md"),)) == [corpus / "notes.md"]


def test_what_cannot_be_split_is_refused_by_name(tmp_path: Path) -> None:
    empty, broken, short = (tmp_path / name for name in ("empty.txt", "broken.txt", "short.txt"))
    empty.touch()
    broken.write_bytes(b"text " * 10 + b"\xff" + b" more" * 10)
    short.write_text("x")
    with pytest.raises(ValueError, match=r"expected text in .*empty\.txt, got an empty file"):
        holdout.split([empty], 0.1, tmp_path)
    with pytest.raises(ValueError, match=r"expected UTF-8 in .*broken\.txt, got another byte at offset 50"):
        holdout.split([broken], 0.1, tmp_path)
    with pytest.raises(ValueError, match=r"expected text to train on in .*short\.txt \(1 bytes\), got none"):
        holdout.split([short], 0.1, tmp_path)
    with pytest.raises(ValueError, match="expected text to train on in 2 files, got none"):
        holdout.choose([short, empty], 0.1)
    with pytest.raises(FileNotFoundError):
        holdout.files_of((str(tmp_path / "none.txt"),))
    (tmp_path / "folder").mkdir()
    with pytest.raises(
        ValueError, match=r"expected \*.txt, \*.jsonl, \*.ndjson or \*.parquet files in .*folder, found none"
    ):
        holdout.files_of((str(tmp_path / "folder"),))


def test_a_broken_character_across_blocks_is_found_at_its_offset(tmp_path: Path) -> None:
    file = tmp_path / "large.txt"
    n = holdout._CHUNK
    file.write_bytes(b"a" * (n - 1) + "é".encode() + b"b" * n + b"\xc3(" + b"c" * 100)
    with pytest.raises(ValueError, match=rf"at offset {2 * n + 1}"):
        holdout.split([file], 0.01, tmp_path)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([1000, 30], [30]),  # never the large one, whichever its name's hash puts first
        ([30, 1000], [30]),
        ([1000, 1000], [1000]),
        ([1, 1000, 1000], [1, 1000]),  # a byte alone would measure nothing
        ([5000, 100, 3000, 90, 2000, 800], [800, 100, 90]),
    ],
)
def test_a_large_file_among_few_is_not_held_out(tmp_path: Path, sizes: list[int], expected: list[int]) -> None:
    files = [tmp_path / f"{i}.txt" for i in range(len(sizes))]
    for file, size in zip(files, sizes, strict=True):
        file.write_text("a" * size)
    train, val = holdout.choose(files, 0.1)
    assert sorted(file.stat().st_size for file in val) == sorted(expected)
    assert sorted(train + val) == files
