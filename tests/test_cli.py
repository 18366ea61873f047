"""The command line as a user types it: results on stdout, messages on stderr, exit codes."""

import dataclasses
import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import gptrs
from conftest import Cli
from gptrs import Dataset, Loader, Tokenizer
from gptrs import cli as cli_module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, corpus: Path, cli: Cli) -> Path:
    """A folder in which the first two commands of the road have run."""
    folder = tmp_path_factory.mktemp("cli")
    train = cli("tokenizer", "train", corpus, "--vocab-size", 1000, "--out", folder / "tokenizer.json")
    assert train.returncode == 0, train.stderr
    assert train.stdout.startswith(f"{folder}/tokenizer.json: 1000 ids, pattern gpt2, digest ") and train.stderr == ""
    prepare = cli("prepare", corpus, "--tokenizer", folder / "tokenizer.json", "--out", folder / "data")
    assert prepare.returncode == 0, prepare.stderr
    assert prepare.stdout.startswith(f"{folder}/data: ") and prepare.stderr == ""
    return folder


def test_commands_do_what_the_functions_do(folder: Path, corpus: Path):
    tok = Tokenizer.from_file(folder / "tokenizer.json")
    assert tok == Tokenizer.train(corpus, 1000)
    assert Dataset(folder / "data").tokenizer_digest == tok.digest


def test_standard_input_is_a_file_like_any_other(folder: Path, tmp_path: Path, cli: Cli):
    text, line = "def f(x):\n    return 'é日'\n" * 50, '{"text": "one two"}\n'
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.jsonl").write_text(line * 3)
    tok, files = Tokenizer.from_file(folder / "tokenizer.json"), [tmp_path / "a.txt", tmp_path / "b.jsonl"]
    whole = gptrs.prepare(files, tok, tmp_path / "whole")
    for given, options, files in (
        (text, [], ["-", tmp_path / "b.jsonl"]),
        (line * 3, ["--stdin", "jsonl"], [tmp_path / "a.txt", "-"]),
    ):
        out = tmp_path / f"out-{len(options)}"
        command = ["prepare", *files, "--tokenizer", folder / "tokenizer.json", "--out", out, *options]
        assert cli(*command, input=given).returncode == 0
        assert [path.name for path in out.iterdir() if path.is_dir()] == []
        # The same again is the same dataset, and so is that of the files.
        again = cli(*command, input=given)
        assert again.returncode == 0, again.stderr
        assert Dataset(out).fingerprint == whole.fingerprint
        assert cli(*command, input=given + given).stderr.count("other input files") == 1
    twice = cli("prepare", "-", "-", "--tokenizer", folder / "tokenizer.json", "--out", tmp_path / "twice", input="x")
    assert twice.returncode == 1 and twice.stderr == 'error: expected standard input once, got "-" more than once\n'


def test_standard_input_beside_the_folder_that_the_dataset_is_in_is_read_once(folder: Path, tmp_path: Path, cli: Cli):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    words = ["--tokenizer", folder / "tokenizer.json", "--out", corpus / "out"]
    end = cli("prepare", corpus, "-", *words, input="of standard input")
    assert end.returncode == 1 and f"parquet files in {corpus}, found none; hint: name" in end.stderr
    (corpus / "a.txt").write_text("of the folder")
    tok = Tokenizer.from_file(folder / "tokenizer.json")
    for paths in ((corpus, "-"), (f"{tmp_path}/cor*", "-")):
        end = cli("prepare", *paths, *words, input="of standard input")
        assert end.returncode == 0 and end.stderr == ""
        dataset = Dataset(corpus / "out")
        assert tok.decode(dataset[:].tolist()) == "of the folder<|endoftext|>of standard input<|endoftext|>"


def test_what_a_killed_process_kept_of_standard_input_goes_with_the_next(folder: Path, tmp_path: Path, cli: Cli):
    words = ["prepare", "-", "--tokenizer", str(folder / "tokenizer.json"), "--out", str(tmp_path / "out")]
    running = [subprocess.Popen([sys.executable, "-m", "gptrs", *words], stdin=subprocess.PIPE) for _ in range(2)]

    def kept() -> list[Path]:
        return sorted(path for path in (tmp_path / "out").glob(".standard-input-*") if list(path.iterdir()))

    end = time.monotonic() + 60
    while len(kept()) < 2 and time.monotonic() < end:
        time.sleep(0.02)
    assert len(kept()) == 2
    running[0].kill()
    running[0].communicate()
    assert len(kept()) == 2, "nobody has tidied up yet"
    assert cli(*words, input="some text\n").returncode == 0
    assert len(kept()) == 1, "that of the process that still runs"
    running[1].kill()
    running[1].communicate()
    assert cli(*words, input="some text\n").returncode == 0
    assert kept() == [] and Dataset(tmp_path / "out").n_documents == 1


def test_encode_and_decode_are_inverse(folder: Path, cli: Cli):
    file = folder / "tokenizer.json"
    text = "def f(x):\n    return 'é日'  "
    ids = cli("tokenizer", "encode", file, text)
    assert [int(i) for i in ids.stdout.split()] == Tokenizer.from_file(file).encode(text)
    assert cli("tokenizer", "encode", file, input=text).stdout == ids.stdout
    assert cli("tokenizer", "decode", file, *ids.stdout.split()).stdout == text
    assert cli("tokenizer", "decode", file, input=ids.stdout).stdout == text


def test_bytes_that_are_no_text_pass_through_the_pipes(folder: Path):
    data = bytes(range(256)) * 3
    encode = [sys.executable, "-m", "gptrs", "tokenizer", "encode", str(folder / "tokenizer.json")]
    ids = subprocess.run(encode, input=data, capture_output=True, check=True).stdout
    back = subprocess.run([*encode[:4], "decode", encode[5]], input=ids, capture_output=True, check=True).stdout
    assert back == data


def test_a_program_without_standard_input_and_output_works(folder: Path):
    words = [sys.executable, "-m", "gptrs", "tokenizer", "encode", str(folder / "tokenizer.json")]
    done = subprocess.run(words, preexec_fn=lambda: os.closerange(0, 2), stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_tokens_are_shown_one_a_line(folder: Path, cli: Cli):
    lines = cli("tokenizer", "encode", folder / "tokenizer.json", "self\n", "--tokens").stdout.splitlines()
    tok = Tokenizer.from_file(folder / "tokenizer.json")
    assert [int(line.split("\t")[0]) for line in lines] == tok.encode("self\n")
    assert lines[-1] == '10\t"\\n"'


def test_special_text_is_text_unless_asked(folder: Path, cli: Cli):
    arguments = ("tokenizer", "encode", folder / "tokenizer.json", "<|endoftext|>")
    assert len(cli(*arguments).stdout.split()) > 1
    assert cli(*arguments, "--special").stdout == "999\n"


def test_inspect_verify_and_show(folder: Path, cli: Cli):
    dataset = Dataset(folder / "data")
    inspect = cli("data", "inspect", folder / "data").stdout
    for fact in (dataset.n_tokens, dataset.n_documents, dataset.fingerprint, dataset.tokenizer_digest, "uint16"):
        assert str(fact) in inspect
    assert dataset.fingerprint in cli("data", "verify", folder / "data").stdout
    options = ("--seq-len", 8, "--global-batch", 3, "--seed", 5)
    shown = cli("data", "show", folder / "data", 7, *options).stdout.splitlines()
    with Loader(dataset, seq_len=8, global_batch=3, seed=5, device="numpy") as loader:
        batch = loader.batch_at(7)
    assert [line.split(": ")[1] for line in shown] == [" ".join(map(str, row)) for row in batch.tokens.tolist()]
    text = cli("data", "show", folder / "data", 0, "--no-shuffle", "-t", folder / "tokenizer.json").stdout
    assert text.startswith('token 0: "')


def test_a_corpus_too_small_warns_in_one_line(tmp_path: Path, cli: Cli):
    (tmp_path / "a.txt").write_text("abab")
    end = cli("tokenizer", "train", tmp_path / "a.txt", "-n", 300, "-o", tmp_path / "t.json")
    assert end.returncode == 0 and end.stderr.startswith("warning: the corpus (4 bytes") and end.stderr.count("\n") == 1


def test_without_torch_what_needs_it_says_how_to_get_it(folder: Path, tmp_path: Path, cli: Cli):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['torch'] = None")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    for arguments in (("train", "demo"), ("demo",), ("generate", "--run", "x")):
        end = cli(*arguments, env=env)
        assert end.returncode == 1 and end.stdout == ""
        assert end.stderr.endswith("needs torch, which is not installed; hint: pip install 'gptrs[train]'\n")
    assert cli("tokenizer", "encode", folder / "tokenizer.json", "text", env=env).returncode == 0
    assert cli("data", "show", folder / "data", env=env).returncode == 0
    code = f"import gptrs; gptrs.Loader(gptrs.Dataset({str(folder / 'data')!r}), seq_len=8, global_batch=4)"
    end = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert "device='cpu' needs PyTorch, which is not installed; hint: pip install 'gptrs[train]'" in end.stderr


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with one checkpoint of a tiny model that was never trained."""
    torch = pytest.importorskip("torch")
    from gptrs.model import ModelConfig, Transformer
    from gptrs.train import checkpoint

    run = tmp_path_factory.mktemp("run")
    Tokenizer.from_file(folder / "tokenizer.json").save(run / "tokenizer.json")
    config = ModelConfig(
        vocab_size=1000, max_seq_len=32, dim=16, n_layers=1, n_heads=2, inter_dim=32, position="learned"
    )
    model = Transformer(config)
    optimizer = torch.optim.AdamW(model.parameters())
    state = {"model": dataclasses.asdict(config)}
    checkpoint.save(run / "checkpoints", step=3, model=model, optimizer=optimizer, state=state, keep=1)
    return run


def test_generate_writes_whole_characters_and_repeats_with_a_seed(run: Path, warm_cli: Cli):
    arguments = ("--prompt", "def é", "--seed", 7, "--temperature", 1)
    first = warm_cli("generate", "--run", run, *arguments)
    assert first.returncode == 0 and first.stdout.startswith("def é") and len(first.stdout) > 10, first.stderr
    short = warm_cli("generate", "--checkpoint", run / "checkpoints" / "step-00000003", *arguments, "-n", 3)
    assert short.returncode == 0 and first.stdout.startswith(short.stdout.rstrip("\n\ufffd"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--prompt", ""), "no tokens"),
        (("--prompt", "def f(x):" * 20), "positions"),
        (("--top-p", "1.5"), "top_p"),
        (("--min-p", "-0.1"), "min_p"),
        (("--repetition-penalty", "0"), "repetition_penalty must be a number above 0"),
        (("--logprobs", "-1"), "logprobs must be at least 0"),
        (("--stop", ""), "stop_strings must be a list of texts that are not empty"),
        (("--prefill-chunk", "0"), "prefill_chunk must be at least 1"),
        (("--drafts", "1"), "needs a model with further-token modules"),
        (("--drafts", "-1"), "n_drafts must be at least 0"),
        (("--device", "cuda:99"), "cuda:99"),
    ],
)
def test_generate_names_what_does_not_fit(run: Path, warm_cli: Cli, arguments: tuple[str, ...], says: str):
    end = warm_cli("generate", "--run", run, *arguments)
    assert end.returncode == 1 and end.stderr.startswith("error: ") and end.stderr.count("\n") == 1, end.stderr
    assert says in end.stderr


def test_generate_ends_before_a_stop_string(run: Path, warm_cli: Cli):
    arguments = ("--prompt", "def é", "--seed", 7, "--repetition-penalty", 1.1, "--prefill-chunk", 2)
    whole = warm_cli("generate", "--run", run, *arguments).stdout.removesuffix("\n")
    stop = whole[len("def é") + 3 :][:2]
    end = warm_cli("generate", "--run", run, *arguments, "--stop", "not in it", "--stop", stop)
    assert end.returncode == 0 and end.stdout == whole[: whole.index(stop, len("def é"))] + "\n"


def test_generate_writes_log_probabilities_as_lines_of_json(run: Path, warm_cli: Cli):
    arguments = ("--prompt", "def", "--seed", 7, "-n", 5)
    end = warm_cli("generate", "--run", run, *arguments, "--logprobs", 2)
    lines = [json.loads(line) for line in end.stdout.splitlines()]
    assert len(lines) == 5 and end.stderr == ""
    for line in lines:
        first, second = line["likeliest"]
        assert first["logprob"] >= second["logprob"] and line["logprob"] <= first["logprob"] <= 0
    text = Tokenizer.from_file(run / "tokenizer.json").decode([line["id"] for line in lines])
    assert warm_cli("generate", "--run", run, *arguments).stdout == f"def{text}\n"
    (line, *_) = warm_cli("generate", "--run", run, *arguments, "--logprobs", 0).stdout.splitlines()
    assert set(json.loads(line)) == {"id", "token", "logprob"}


@pytest.mark.parametrize(
    ("encoding", "errors", "written"),
    [
        ("ascii", "strict", b"caf\\xe9 \\u2192"),
        ("ascii", "surrogateescape", b"caf\\xe9 \\u2192"),  # locale C
        ("latin-1", "strict", b"caf\xe9 \\u2192"),
        ("ascii", "replace", b"caf? ?"),
        ("utf-8", "strict", "café →".encode()),
    ],
)
def test_what_a_terminal_cannot_show_is_written_by_its_number(
    run: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, errors: str, written: bytes
):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    for arguments in (("-p", "café →"), ("-p", "café →", "--logprobs", "3")):
        out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors)
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "argv", ["gptrs", "generate", "--run", str(run), "-n", "9", "--seed", "1", *arguments])
        with pytest.raises(SystemExit) as end:
            cli_module.main()
        out.flush()
        assert not end.value.code
        lines = out.buffer.getvalue()  # type: ignore[attr-defined]
        if "--logprobs" in arguments:
            assert "\ufffd" in str([json.loads(line) for line in lines.splitlines()])
        else:
            assert lines.startswith(written)


def test_generate_says_how_many_drafts_held(run: Path, tmp_path: Path, warm_cli: Cli):
    from gptrs.model import ModelConfig, Transformer
    from gptrs.train import checkpoint

    Tokenizer.from_file(run / "tokenizer.json").save(tmp_path / "tokenizer.json")
    config = ModelConfig(
        vocab_size=1000, max_seq_len=64, dim=16, n_layers=1, n_heads=2, inter_dim=32, position="rope", n_mtp_layers=1
    )
    state = {"model": dataclasses.asdict(config)}
    checkpoint.save(tmp_path / "checkpoints", step=1, model=Transformer(config), optimizer=None, state=state, keep=1)
    arguments = ("generate", "--run", tmp_path, "--temperature", 0, "-n", 20)
    plain, drafted = warm_cli(*arguments), warm_cli(*arguments, "--drafts", 2)
    assert drafted.returncode == 0 and drafted.stdout == plain.stdout and plain.stderr == ""
    assert re.fullmatch(r"drafts: \d+ of \d+ accepted \(\d+\.\d%\)\n", drafted.stderr)


def test_generate_needs_a_whole_checkpoint(run: Path, tmp_path: Path, warm_cli: Cli):
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "step-00000003" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    end = warm_cli("generate", "--run", tmp_path / "run")
    assert end.returncode == 1 and "model.safetensors" in end.stderr and "Traceback" not in end.stderr
    end = warm_cli("generate", "--run", tmp_path)
    assert end.returncode == 1 and "expected a finished checkpoint in" in end.stderr
    assert warm_cli("generate").returncode == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("prepare", "a.txt", "-t", "t.json", "-o", "x", "--stdin", "jsonl"), "--stdin jsonl says what standard"),
        (("prepare", "a.txt", "-t", "t.json", "-o", "x", "--keep-tasks"), "--keep-tasks goes with --merge"),
        (("data", "export", "x", "y", "--format", "nanogpt", "--tokens-per-file", 5), "goes with --format llmc"),
        (("runs", ".", "--x", "time"), "goes with --html or --png"),
    ],
)
def test_an_option_that_would_not_be_heeded_is_refused(cli: Cli, words: tuple[object, ...], message: str):
    done = cli(*words, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 2 and message in done.stderr


def test_the_version_is_the_packages(cli: Cli):
    assert cli("--version").stdout == f"gptrs {gptrs.__version__}\n"


def verbs() -> list[tuple[str, ...]]:
    import typer.main

    from gptrs.cli import app

    def walk(command, path: tuple[str, ...]):
        yield path
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, (*path, name))

    return list(walk(typer.main.get_command(app), ()))


@pytest.mark.parametrize("verb", verbs(), ids=" ".join)
def test_every_verb_explains_itself_and_each_option(verb: tuple[str, ...]):
    import typer.main

    from gptrs.cli import app

    command = typer.main.get_command(app)
    for name in verb:
        command = command.commands[name]
    assert command.help
    undescribed = [parameter.name for parameter in command.params if not getattr(parameter, "help", None)]
    assert undescribed in ([], ["help"])
    swallowed = [parameter.name for parameter in command.params if "[" in (getattr(parameter, "help", None) or "")]
    assert swallowed == [], "what looks like markup is not shown; show_default= is"


def test_help_is_quick_and_plain(cli: Cli):
    start = resource.getrusage(resource.RUSAGE_CHILDREN)
    end = cli("prepare", "--help", env={"PATH": "", "COLUMNS": "120", "PYTHONPATH": ":".join(sys.path)})
    taken = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert taken.ru_utime + taken.ru_stime - start.ru_utime - start.ru_stime < 2, (
        "processor time: others may run beside"
    )
    assert end.returncode == 0 and "--shard-tokens" in end.stdout and "torch" not in end.stderr


TORCH_CPU = (
    "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried 64 bytes.\nwhere"
)


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
    """Runs the command line in this process, where a command raises this error."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # main() sets these three
    monkeypatch.setenv("KINETO_LOG_LEVEL", "99")
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def run(error: Exception) -> None:
        def app(**_: object) -> None:
            raise error

        monkeypatch.setattr(cli_module, "app", app)
        cli_module.main()

    return run


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "error: the system has no more memory; hint: a smaller input or fewer threads take less\n"),
        (MemoryError("no room; hint: take less"), "error: no room; hint: take less\n"),
        (RuntimeError(TORCH_CPU), f"error: {TORCH_CPU.splitlines()[0]}; hint: a smaller train.micro_batch"),
    ],
)
def test_memory_that_runs_out_is_one_line(
    fails: Callable[[Exception], None], capsys: pytest.CaptureFixture[str], error: Exception, says: str
):
    with pytest.raises(SystemExit) as end:
        fails(error)
    err = capsys.readouterr().err
    assert end.value.code == 1 and err.startswith(says) and err.count("\n") == 1, err


def test_other_errors_keep_their_traceback(fails: Callable[[Exception], None]):
    with pytest.raises(RuntimeError, match=r"^a bug$"):
        fails(RuntimeError("a bug"))
