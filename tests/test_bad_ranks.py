"""Wrong input to ranks: rank 0 says it in one line, nobody is left waiting, and every exit code is 1."""

import os
import socket
import sys
from pathlib import Path

import pytest

from gptrs import cli
from ranks import environment, fork, free_port
from test_bad_runs import TINY, WORDS

EXPERTS = (
    *("model.preset=deepseek-tiny", "model.inter_dim=32", "model.kv_lora_rank=8", "model.moe_inter_dim=8"),
    "model.n_routed_experts=6",
)


def settings(folder: Path) -> list[str]:
    text = folder / "text.txt"
    text.write_text("".join(f"{i} {WORDS[i % 40 :]}\n" for i in range(80)))
    return [*TINY, "run.dtype=fp32", f"data.text={text}", f"run.dir={folder / 'run'}"]


def train(words: list[str], *, ranks: tuple[int, ...] = (0, 1), size: int = 2, port: int | None = None) -> list[int]:
    """Exit codes of `gptrs train` on some of the ranks of a world."""
    port = port or free_port()

    def one(rank: int) -> None:
        os.environ.update(environment(ranks[rank], size, port), OMP_WAIT_POLICY="passive")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.argv = ["gptrs", "train", "shakespeare_cpu", *words]
        try:
            cli.main()
        except SystemExit as end:
            sys.stderr.flush()
            os._exit(int(end.code or 0))

    return fork(len(ranks), one)


def check(codes: list[int], err: str, *says: str) -> None:
    assert set(codes) == {1}, (codes, err)
    assert err.startswith("error: ") and err.count("\n") == 1, err
    for text in says:
        assert text in err, err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((*EXPERTS, "parallel.expert=4"), ("expert parallelism (4) must divide n_routed_experts (6)",)),
        ((*EXPERTS, "parallel.expert=3"), ("(3) must divide the number of ranks, got 2; hint: ",)),
        (("train.global_batch=1000",), ("expected at least the 1,000 rows of a step", "hint: ")),
        (("model.init_std=1e30",), ("expected a finite loss and gradient at the first step", "hint: ")),
        (("optim.in_backward=true", "optim.clip=0"), ("needs a single process, got 2 ranks; hint: ",)),
        (("run.dir=/dev/null/run",), ("cannot write to the run directory /dev/null/run", "hint: ")),
        (("data.text=/nowhere/text.txt",), ("/nowhere/text.txt",)),
    ],
    ids=["experts", "too many experts", "short", "no number", "in backward", "no leave", "no text"],
)
def test_a_mistake_ends_all_ranks(
    words: tuple[str, ...], says: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    codes = train([*settings(tmp_path), *words])
    check(codes, capfd.readouterr().err, *says)
    assert not list(tmp_path.glob("run/checkpoints/step-*")), "nothing was trained"


def test_a_config_that_changed_under_a_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = settings(tmp_path)
    assert train(words) == [0, 0]
    (tmp_path / "run" / "result.json").unlink()
    capfd.readouterr()
    says = ("optim.lr = 0.01, this one has 0.02", "--allow optim.lr goes on with the new value")
    check(train([*words, "optim.lr=2e-2"]), capfd.readouterr().err, *says)
    assert train([*words, "optim.lr=2e-2", "--allow", "optim.lr"]) == [0, 0], capfd.readouterr().err


def test_ranks_that_never_come(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    codes = train([*settings(tmp_path), "parallel.timeout_s=2"], ranks=(0, 2), size=4)
    check(codes, capfd.readouterr().err, "expected 4 ranks within 2 s, got none of ranks 1, 3; hint: ")


def test_without_rank_0_another_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert train([*settings(tmp_path), "parallel.timeout_s=1"], ranks=(1,)) == [1]
    assert "error: rank 1: rank 0 did not answer on port " in capfd.readouterr().err, "beside what torch says"


def test_a_port_in_use(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))  # noqa: S104
        taken.listen()
        port = int(taken.getsockname()[1])
        codes = train([*settings(tmp_path), "parallel.timeout_s=2"], port=port)
    errors = sorted(capfd.readouterr().err.splitlines(keepends=True))
    check(codes, errors[0], f"cannot listen on port {port} of 127.0.0.1", "hint: another MASTER_PORT")
    assert errors[1:] == [f"error: rank 1: rank 0 did not answer on port {port} of 127.0.0.1 within 2 s\n"]
