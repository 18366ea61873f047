"""lm-evaluation-harness as an outside judge of exports: its log-likelihoods are ours, from text to number."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch

import gptrs
from gptrs.exchange.hf import export_hf
from gptrs.model import ModelConfig, Transformer
from gptrs.score import score

QUESTIONS = [
    {"question": "A true friend", "choices": ["accepts you", "is never there", "café — naïve"], "answer": 0},
    {"question": "def f(x):\n    return", "choices": ["x + 1", "None", "the moon"], "answer": 1},
    {"question": "1, 2, 3,", "choices": ["4", "12", "100,000"], "answer": 0},
]
# The package's own entry, in a process of its own: offline before anything is imported.
JUDGE = """
    import json, sys
    import lm_eval
    from lm_eval.tasks import TaskManager

    folder = sys.argv[1]
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": f"{folder}/model", "dtype": "float32", "trust_remote_code": False},
        tasks=["ours"],
        task_manager=TaskManager(include_path=f"{folder}/task", include_defaults=False),
        device="cpu",
        batch_size=2,
        log_samples=True,
        bootstrap_iters=0,
    )
    samples = found["samples"]["ours"]
    pairs = [
        [call["arg_0"], call["arg_1"], *response[0]] if isinstance(call, dict) else [*call, *response[0]]
        for sample in samples
        for call, response in zip(
            sample["arguments"].values() if isinstance(sample["arguments"], dict) else sample["arguments"],
            sample["resps"],
            strict=True,
        )
    ]
    pairs = [[context, text, float(total), str(greedy) == "True"] for context, text, total, greedy in pairs]
    with open(f"{folder}/found.json", "w") as file:
        json.dump(pairs, file)
"""


@pytest.fixture(scope="module")
def tokenizer(stdlib_files):
    texts = [path.read_text("utf-8") for path in stdlib_files[:4]]
    return gptrs.Tokenizer.train_from_iterator(texts, 400, special_tokens=["<|endoftext|>"])


def test_log_likelihoods_of_an_exported_model_are_ours(tmp_path, tokenizer):
    config = ModelConfig.preset(
        "gpt2-small", vocab_size=tokenizer.vocab_size, max_seq_len=64, dim=48, n_layers=2, n_heads=4, init_std=0.2
    )
    model = Transformer(config, seed=5)
    export_hf(model, tmp_path / "model", tokenizer=tokenizer)
    _write_task(tmp_path)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", textwrap.dedent(JUDGE), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads((tmp_path / "found.json").read_text("utf-8"))
    assert [(context, text) for context, text, _, _ in theirs] == [
        (row["question"], f" {choice}") for row in QUESTIONS for choice in row["choices"]
    ]
    ours = score(model, [_ids(tokenizer, context, text) for context, text, _, _ in theirs])
    for (_, text, total, is_greedy), mine in zip(theirs, ours, strict=True):
        assert mine.total == pytest.approx(total, abs=1e-4), text
        assert mine.is_greedy == is_greedy
    assert torch.tensor([mine.total for mine in ours]).std() > 1  # the model tells texts apart


def _write_task(folder):
    (folder / "task").mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in QUESTIONS)
    (folder / "task" / "rows.jsonl").write_text(lines, "utf-8")
    task = {
        "task": "ours",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "task" / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "task" / "ours.yaml").write_text(json.dumps(task), "utf-8")  # JSON is YAML


def _ids(tokenizer, context, text):
    """The harness cuts the ids of the whole where those of the context end."""
    n = len(tokenizer.encode_ordinary(context))
    whole = tokenizer.encode_ordinary(context + text)
    return whole[:n], whole[n:]
