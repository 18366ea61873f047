"""`gptrs prepare` as one task of several, as their merge, or on a Ray cluster."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from gptrs.dataset import Dataset

Task = Annotated[int | None, typer.Option(help="Encode this part of the files alone, from 0; see --of.", min=0)]
Of = Annotated[int | None, typer.Option(help="The number of tasks that share the work.", min=1)]
Merge = Annotated[bool, typer.Option("--merge", help="Join the finished tasks into the bytes of one run.")]
KeepTasks = Annotated[bool, typer.Option("--keep-tasks", help="Leave the tasks' folders after the merge.")]
Ray = Annotated[
    str | None,
    typer.Option(help="Run the tasks on this Ray cluster: auto, ray://HOST:PORT, or local.", metavar="ADDRESS"),
]


def is_asked(task: int | None, of: int | None, merge: bool, ray: str | None) -> bool:
    """Whether the command is about tasks; fails when its options do not fit together."""
    chosen = [name for name, is_given in (("--task", task is not None), ("--merge", merge), ("--ray", ray)) if is_given]
    if len(chosen) > 1:
        raise typer.BadParameter(f"expected one of --task, --merge and --ray, got {' and '.join(chosen)}")
    if not chosen and of is not None:
        raise typer.BadParameter("--of needs --task I, --merge or --ray ADDRESS")
    if chosen and chosen != ["--ray"] and of is None:
        raise typer.BadParameter(f"{chosen[0]} needs --of N, the number of tasks")
    return bool(chosen)


def prepare(
    files: list[str],
    tokenizer: str,
    pattern: str | None,
    out: str,
    *,
    task: int | None,
    of: int | None,
    keep_tasks: bool,
    ray: str | None,
    **options: Any,
) -> None:
    """Does what `is_asked` found and says what came out."""
    from gptrs import on_ray, tasks
    from gptrs.tokenizer import Tokenizer

    if "-" in files:
        raise typer.BadParameter("standard input cannot be shared by tasks; hint: save it to a file first")
    coder = Tokenizer.from_file(tokenizer, pattern=pattern)
    if task is not None and of is not None:
        end = tasks.prepare_task(files, coder, out, task, of, **options)
        state = "all tasks are merged" if end.is_merged else f"task {task} of {of}"
        typer.echo(f"{end.path}: {state}, {end.n_tokens} tokens, {end.n_documents} documents end here")
        return
    if ray is not None:
        address = None if ray == "local" else ray
        dataset = on_ray.prepare_on_ray(files, coder, out, address=address, of=of, keep_tasks=keep_tasks, **options)
    else:
        assert of is not None
        dataset = tasks.merge_tasks(files, coder, out, of, keep_tasks=keep_tasks, **options)
    report(out, dataset)
    left = sorted(folder.name for folder in Path(out, "tasks").glob("task-*"))
    if left and not keep_tasks:
        whose = f"{Path(out, 'tasks')} holds tasks of another --of"
        typer.echo(f"{whose}: {', '.join(left)}; hint: remove it, nothing of it is missing here")


def report(out: str, dataset: "Dataset") -> None:
    """Says what a run has made, and what is not in it as it was read."""
    typer.echo(f"{out}: {dataset.n_tokens} tokens, {dataset.n_documents} documents, fingerprint {dataset.fingerprint}")
    for what, counts in corrections(dataset.manifest).items():
        typer.echo(f"{what}: {counts}")


def corrections(manifest: dict[str, Any]) -> dict[str, str]:
    """How many documents a manifest says were left out, by reason, and how many bad sequences were replaced."""
    lines = {}
    left_out = [f"{n} {reason}" for reason, n in manifest.get("left_out", {}).items() if n]
    if left_out:
        lines["left out"] = f"{', '.join(left_out)} documents"
    if manifest.get("replaced"):
        lines["replaced"] = f"{manifest['replaced']} sequences that were not UTF-8, by U+FFFD"
    return lines
