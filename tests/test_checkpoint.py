"""Checkpoints: exact, whole, checked, and never a part of one."""

import json
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from gptrs.files import digest
from gptrs.model import ModelConfig, Transformer
from gptrs.train import checkpoint
from gptrs.train.optim import adamw

torch.set_num_threads(1)
CONFIG = ModelConfig(vocab_size=32, max_seq_len=8, dim=8, n_layers=2, n_heads=2, inter_dim=16, dropout=0.1)


def make(seed: int = 0, config: ModelConfig = CONFIG) -> tuple[Transformer, torch.optim.AdamW]:
    model = Transformer(config, seed=seed)
    return model, adamw(model, lr=1e-2, weight_decay=0.1, betas=(0.9, 0.99), eps=1e-8)


def update(model: Transformer, optimizer: torch.optim.AdamW) -> float:
    """One update on random tokens: uses torch's global generator for the batch and for dropout."""
    model.train()
    tokens = torch.randint(CONFIG.vocab_size, (2, 9))
    loss = model.loss(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def save(directory: Path, step: int, model: Transformer, optimizer: torch.optim.AdamW, keep: int = 2) -> Path:
    return checkpoint.save(
        directory, step=step, model=model, optimizer=optimizer, state={"note": {"at": [step]}}, keep=keep
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model, optimizer = make()
    update(model, optimizer)
    return save(tmp_path / "checkpoints", 1, model, optimizer)


def test_a_restored_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model, optimizer = make()
    for _ in range(3):
        update(model, optimizer)
    path = save(tmp_path, 3, model, optimizer)
    expected = [update(model, optimizer) for _ in range(3)]

    torch.manual_seed(99)
    other, other_optimizer = make(seed=5)
    state = checkpoint.load(path, other, other_optimizer)
    assert (state["step"], state["note"]) == (3, {"at": [3]})
    assert [update(other, other_optimizer) for _ in range(3)] == expected
    for (name, one), (_, two) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(one, two), name


def test_the_files_are_safetensors_and_json_and_nothing_else(saved: Path) -> None:
    from safetensors import safe_open

    names = {"model.safetensors", "optimizer.safetensors", "state.json", "manifest.json", "COMMITTED"}
    assert {path.name for path in saved.iterdir()} == names
    model, _ = make()
    with safe_open(saved / "model.safetensors", "pt") as file:
        assert set(file.keys()) == {name for name, _ in model.named_parameters()}
    with safe_open(saved / "optimizer.safetensors", "pt") as file:
        assert set(file.keys()) == {
            f"{n}/{k}" for n, _ in model.named_parameters() for k in ("step", "exp_avg", "exp_avg_sq")
        }
    assert json.loads((saved / "state.json").read_text())["note"] == {"at": [1]}


def test_equal_states_give_equal_bytes(tmp_path: Path) -> None:
    def bytes_of(directory: Path) -> dict[str, bytes]:
        torch.manual_seed(1)
        model, optimizer = make()
        update(model, optimizer)
        return {path.name: path.read_bytes() for path in save(directory, 1, model, optimizer).iterdir()}

    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")


def test_a_tied_tensor_is_stored_once_and_an_untied_head_too(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(2, 2, bias=False)
            self.two = nn.Linear(2, 2, bias=False)
            self.two.weight = self.one.weight
            self.register_buffer("scale", torch.tensor([2.0]))
            self.register_buffer("scratch", torch.tensor([3.0]), persistent=False)

    model = Tied()
    optimizer = torch.optim.AdamW(model.parameters())
    path = checkpoint.save(tmp_path, step=0, model=model, optimizer=optimizer, state={}, keep=1)
    other = Tied()
    checkpoint.load_model(path, other)
    assert torch.equal(other.two.weight, model.one.weight) and other.two.weight is other.one.weight


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    model, optimizer = make()
    for step in (5, 10, 100):
        save(tmp_path, step, model, optimizer, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000100"]
    assert checkpoint.find(tmp_path) == checkpoint.Found(newest=tmp_path / "step-00000100", uncommitted=())


def test_the_same_step_can_be_saved_again(saved: Path) -> None:
    model, optimizer = make(seed=7)
    assert save(saved.parent, 1, model, optimizer) == saved
    checkpoint.verify(saved)


def test_an_uncommitted_one_is_passed_over_and_reported(saved: Path) -> None:
    shutil.copytree(saved, saved.parent / "step-00000002")
    (saved.parent / "step-00000002" / "COMMITTED").unlink()
    (saved.parent / ".step-00000003.tmp").mkdir()
    found = checkpoint.find(saved.parent)
    assert found == checkpoint.Found(newest=saved, uncommitted=(saved.parent / "step-00000002",))


def test_no_directory_means_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.find(tmp_path / "none") == checkpoint.Found(newest=None, uncommitted=())


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_every_flipped_or_missing_byte_is_found_and_its_file_named(saved: Path, name: str) -> None:
    file = saved / name
    whole = file.read_bytes()
    places = sorted({*range(0, len(whole), max(1, len(whole) // 40)), len(whole) - 1})
    for at in places:
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with pytest.raises(ValueError, match=rf"damaged checkpoint: .*{name}.*; hint: remove .*step-00000001"):
            checkpoint.load(saved, *make())
        file.write_bytes(whole[:at])
        with pytest.raises(ValueError, match=rf"damaged checkpoint: .*{name}"):
            checkpoint.load(saved, *make())
    file.unlink()
    with pytest.raises(ValueError, match=rf"damaged checkpoint: .*{name}, got no"):
        checkpoint.load(saved, *make())
    file.write_bytes(whole)
    checkpoint.load(saved, *make())


def flip_all(saved: Path, names: list[str], stride: int) -> None:
    """Flips a bit of every byte, or of some, and cuts the file there: all of it is found."""
    for name in names:
        file = saved / name
        whole = file.read_bytes()
        for at in range(0, len(whole), stride):
            for data in (whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :], whole[:at]):
                file.write_bytes(data)
                with pytest.raises(ValueError, match="damaged checkpoint"):
                    checkpoint.verify(saved)
        file.write_bytes(whole)
    checkpoint.verify(saved)


def test_every_byte_of_the_manifest_and_of_the_marker_counts(saved: Path) -> None:
    flip_all(saved, ["COMMITTED", "manifest.json"], 1)


@pytest.mark.long
def test_every_byte_of_every_file_counts(saved: Path) -> None:
    flip_all(saved, [path.name for path in saved.iterdir()], 1)


def test_a_file_that_the_manifest_does_not_know_is_no_part_of_it(saved: Path) -> None:
    """Else a file put beside the others would be read with them."""
    shutil.copy(saved / "model.safetensors", saved / "model-00002-of-00002.safetensors")
    with pytest.raises(ValueError, match=r"expected no such file in the manifest for .*00002\.safetensors, got one"):
        checkpoint.load(saved, *make())


def test_a_manifest_names_files_beside_it_and_none_elsewhere(saved: Path) -> None:
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["files"]["../secret"] = manifest["files"].pop("state.json")
    (saved / "manifest.json").write_text(json.dumps(manifest))
    (saved / "COMMITTED").write_text(digest(saved / "manifest.json") + "\n")
    with pytest.raises(ValueError, match=r"expected names of files for .*manifest\.json, got '\.\./secret'"):
        checkpoint.verify(saved)


def test_a_damaged_one_leaves_model_and_optimizer_as_they_were(saved: Path) -> None:
    file = saved / "state.json"
    file.write_bytes(file.read_bytes()[:-1])
    model, optimizer = make(seed=3)
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(ValueError, match="damaged checkpoint"):
        checkpoint.load(saved, model, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)) and not optimizer.state


def test_a_checkpoint_of_another_model_is_refused(saved: Path) -> None:
    wider = ModelConfig(vocab_size=32, max_seq_len=8, dim=16, n_layers=2, n_heads=2, inter_dim=16)
    with pytest.raises(ValueError, match=r"expected embed.token.weight of shape \(32, 16\) .* got \(32, 8\)"):
        checkpoint.load(saved, *make(config=wider))
    deeper = ModelConfig(vocab_size=32, max_seq_len=8, dim=8, n_layers=3, n_heads=2, inter_dim=16)
    with pytest.raises(ValueError, match=r"expected the tensors of this model .* missing"):
        checkpoint.load(saved, *make(config=deeper))


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """The system refuses to write files beyond a size: what a full disk does, without a disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["state.json", "model.safetensors", "optimizer.safetensors"])
def test_a_full_disk_is_one_clear_error_and_leaves_earlier_checkpoints(saved: Path, name: str) -> None:
    before = {path: path.read_bytes() for path in saved.iterdir()}
    room = (saved / name).stat().st_size - 1  # the larger files fail, smaller ones before them do not
    model, optimizer = make()
    update(model, optimizer)
    message = r"cannot save checkpoint .*step-00000002: .*; earlier checkpoints are intact; hint"
    with largest_file(room), pytest.raises(OSError, match=message):
        save(saved.parent, 2, model, optimizer, keep=1)
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    assert {path: path.read_bytes() for path in saved.iterdir()} == before
    checkpoint.load(saved, *make())


@pytest.mark.parametrize("n_calls", range(1, 40, 3))
def test_a_kill_at_any_system_call_leaves_the_old_checkpoint_or_the_new_one(saved: Path, n_calls: int) -> None:
    """The saving process ends at its n-th fsync, rename or unlink, as under kill -9."""
    child = os.fork()
    if child == 0:
        remaining = [n_calls]
        for name in ("fsync", "rename", "unlink", "rmdir", "mkdir", "open"):
            setattr(os, name, _ending(getattr(os, name), remaining))
        model, optimizer = make(seed=4)
        save(saved.parent, 2, model, optimizer, keep=1)
        os._exit(0)
    os.waitpid(child, 0)
    found = checkpoint.find(saved.parent)
    assert found.newest is not None and found.uncommitted == ()
    checkpoint.load(found.newest, *make())
    model, optimizer = make(seed=4)
    save(saved.parent, 2, model, optimizer, keep=1)
    assert [path.name for path in saved.parent.iterdir()] == ["step-00000002"]


def _ending(call, remaining):  # type: ignore[no-untyped-def]
    def ended(*args, **kwargs):  # type: ignore[no-untyped-def]
        remaining[0] -= 1
        if remaining[0] <= 0:
            os._exit(9)
        return call(*args, **kwargs)

    return ended


def test_random_states_travel_as_text() -> None:
    torch.manual_seed(11)
    state = json.loads(json.dumps(checkpoint.rng_state()))
    expected = torch.rand(4)
    torch.manual_seed(12)
    checkpoint.set_rng_state(state)
    assert torch.equal(torch.rand(4), expected)
