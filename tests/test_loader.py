"""Batches: the order is a function of the seed alone; any ranks, any microbatch, any stop continue it exactly."""

import gc
import json
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptrs import Batch, Dataset, Loader, Tokenizer, _core, prepare

T = 32


@pytest.fixture(scope="module")
def dataset(corpus: Path, gpt2_like: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepare(corpus, gpt2_like, tmp_path_factory.mktemp("loader") / "tokens", shard_tokens=50_000)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """41 tokens 0 … 39 and an end: five rows of eight."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "a.txt").write_bytes(bytes(range(40)))
    return prepare(folder / "a.txt", Tokenizer.train_from_iterator(["ab"], 257), folder / "tokens")


def take(loader: Iterable[Batch], n: int) -> list[np.ndarray]:
    return [batch.tokens for _, batch in zip(range(n), loader, strict=False)]


def test_an_epoch_of_five_rows_by_hand(tiny: Dataset):
    with Loader(tiny, seq_len=8, global_batch=1, shuffle=False, device="numpy") as loader:
        assert loader.n_rows == 5
        for row in (0, 1, 2, 3, 4, 0):
            batch = next(loader)
            assert batch.tokens.tolist() == [list(range(8 * row, 8 * row + 8))]
            assert batch.targets.tolist() == [[*range(8 * row + 1, 8 * row + 8), 256 if row == 4 else 8 * row + 8]]
        assert loader.epoch == 1 and loader.next_sample == 6
    with Loader(tiny, seq_len=8, global_batch=1, seed=3, device="numpy") as loader:
        epochs = [[int(tokens[0, 0]) // 8 for tokens in take(loader, 5)] for _ in range(8)]
    assert all(sorted(rows) == [0, 1, 2, 3, 4] for rows in epochs) and len(set(map(tuple, epochs))) > 3


def test_every_epoch_holds_each_row_once(dataset: Dataset):
    n_rows = dataset.n_rows(T)
    with Loader(dataset, seq_len=T, global_batch=7, seed=5, device="numpy") as loader:
        starts = np.concatenate([next(loader).starts for _ in range(2 * n_rows // 7 + 7)])
    for epoch in (0, 1):
        assert sorted(starts[epoch * n_rows : (epoch + 1) * n_rows].tolist()) == list(range(0, n_rows * T, T))
    assert starts[:n_rows].tolist() != starts[n_rows : 2 * n_rows].tolist()


def test_targets_are_the_tokens_that_follow(dataset: Dataset):
    everything = dataset[:].astype(np.int64)
    with Loader(dataset, seq_len=T, global_batch=16, seed=1, device="numpy") as loader:
        for _, batch in zip(range(30), loader, strict=False):
            for start, tokens, targets in zip(batch.starts, batch.tokens, batch.targets, strict=True):
                assert np.array_equal(tokens, everything[start : start + T])
                assert np.array_equal(targets, everything[start + 1 : start + T + 1])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_ranks_and_microbatches_continue_anywhere(dataset: Dataset, data: st.DataObject):
    """The stream of samples is the same however many processes read it and wherever they stop."""
    options = data.draw(st.sampled_from([{}, {"pack": "bestfit"}, {"shuffle": "blocks"}]))
    global_batch = data.draw(st.sampled_from([12, 24, 60]))
    seed = data.draw(st.integers(0, 2**64 - 1))

    def stream(worlds: list[tuple[int, int, int]]) -> np.ndarray:
        rows, state = [], None
        for world_size, micro_batch, n_steps in worlds:
            loaders = [
                Loader(dataset, seq_len=T, global_batch=global_batch, seed=seed, rank=rank, world_size=world_size,
                       micro_batch=micro_batch, device="numpy", **options)
                for rank in range(world_size)
            ]  # fmt: skip
            if state is not None:
                for loader in loaders:
                    loader.load_state_dict(state)
            n_items = n_steps * loaders[0].micro_batches_per_step
            rows += [next(loader).tokens for _ in range(n_items) for loader in loaders]
            state = loaders[0].state_dict()
            assert all(loader.state_dict() == state for loader in loaders)
            for loader in loaders:
                loader.close()
        return np.concatenate(rows)

    divisors = [(w, m) for w in range(1, 7) for m in range(1, 13) if global_batch % (w * m) == 0]
    worlds = [(*data.draw(st.sampled_from(divisors)), data.draw(st.integers(1, 3))) for _ in range(3)]
    expected = stream([(1, global_batch, sum(steps for _, _, steps in worlds))])
    assert np.array_equal(stream(worlds), expected)


@pytest.mark.parametrize("seed", range(50))
def test_a_stop_between_two_microbatches_continues_with_other_ranks(dataset: Dataset, seed: int):
    """What all ranks see before and behind the stop is what one rank sees without it; the state travels as JSON."""
    chance = random.Random(seed)
    global_batch = chance.choice([12, 24, 60])
    options = {"seq_len": T, "global_batch": global_batch, "seed": chance.getrandbits(64), "device": "numpy"}
    strides = [d for d in range(1, global_batch + 1) if global_batch % d == 0]
    rows, state, position = [], None, 0
    for _ in range(3):
        stride = chance.choice([d for d in strides if position % d == 0])
        world_size = chance.choice([d for d in strides if stride % d == 0])
        split = {"world_size": world_size, "micro_batch": stride // world_size}
        loaders = [Loader(dataset, rank=rank, **options, **split) for rank in range(world_size)]
        for loader in loaders:
            if state is not None:
                loader.load_state_dict(json.loads(state))
        n_items = chance.randrange(5)
        rows += [next(loader).tokens for _ in range(n_items) for loader in loaders]
        states = {json.dumps(loader.state_dict()) for loader in loaders}
        assert len(states) == 1, "the state is the same on every rank"
        state, position = states.pop(), position + n_items * stride
        for loader in loaders:
            loader.close()
    with Loader(dataset, micro_batch=1, **options) as one:
        expected = take(one, position)
    got = [row for batch in rows for row in batch]
    assert len(got) == position and all(np.array_equal(a, b[0]) for a, b in zip(got, expected, strict=True))


def test_a_state_continues_within_a_step_and_is_small(dataset: Dataset):
    options = {"seq_len": T, "global_batch": 32, "micro_batch": 8, "seed": 9, "device": "numpy"}
    with Loader(dataset, **options) as loader, Loader(dataset, **options) as later:
        take(loader, 3)
        state = json.loads(json.dumps(loader.state_dict()))
        assert len(json.dumps(state)) < 1024 and state["next_sample"] == 24
        later.load_state_dict(state)
        for a, b in zip(take(loader, 9), take(later, 9), strict=True):
            assert np.array_equal(a, b)
        loader.load_state_dict(state)  # backwards too, with buffers already filled ahead
        assert np.array_equal(next(loader).tokens, later.batch_at(3).tokens)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", 2),
        ("order", "sequential"),
        ("fingerprint", "0" * 64),
        ("seq_len", 16),
        ("pack", "bestfit-v1"),
        ("mixture", "0" * 64),
        ("tokenizer", "0" * 64),
        ("version", 9),
    ],
)
def test_a_state_of_another_loader_is_refused_by_name(dataset: Dataset, field: str, value: object):
    loader = Loader(dataset, seq_len=T, global_batch=4, seed=1, device="numpy")
    before = loader.state_dict()
    with pytest.raises(ValueError, match=f"the loader state has {field} .*, this loader .*; hint"):
        loader.load_state_dict({**before, field: value})
    with pytest.raises(ValueError, match=f"'{field}' is missing"):
        loader.load_state_dict({k: v for k, v in before.items() if k != field})
    with pytest.raises(ValueError, match="'more' is unknown"):
        loader.load_state_dict({**before, "more": 1})
    with pytest.raises(ValueError, match="next_sample must be a multiple"):
        loader.load_state_dict({**before, "next_sample": 2})
    for bad in (-4, "4", 4.0, True, None, 1 << 63):
        with pytest.raises(ValueError, match="next_sample must be a whole number of at most 63 bits, got"):
            loader.load_state_dict({**before, "next_sample": bad})
    assert loader.state_dict() == before


def test_a_later_global_batch_continues_at_the_border_of_its_steps(dataset: Dataset):
    options = {"seq_len": T, "seed": 9, "device": "numpy"}
    with Loader(dataset, global_batch=24, micro_batch=4, **options) as loader:
        rows = np.concatenate(take(loader, 60))
        state = {**loader.state_dict(), "next_sample": 48}
    for global_batch in (1, 2, 3, 4, 6, 8, 12, 16, 48):
        with Loader(dataset, global_batch=global_batch, **options) as later:
            later.load_state_dict(state)
            assert np.array_equal(np.concatenate(take(later, 96 // global_batch)), rows[48 : 48 + 96])
    for global_batch, next_sample in ((5, 48), (36, 48), (8, 4)):
        later = Loader(dataset, global_batch=global_batch, **options)
        with pytest.raises(ValueError, match=f"multiple of global_batch .{global_batch}., got {next_sample}; hint"):
            later.load_state_dict({**state, "next_sample": next_sample})


@pytest.mark.parametrize("device", ["numpy", "cpu"])
@pytest.mark.parametrize("documents", [False, True])
def test_memory_is_used_again_only_when_nothing_of_a_batch_is_left(dataset: Dataset, device: str, documents: bool):
    if device == "cpu":
        pytest.importorskip("torch")
    options = {"seq_len": T, "global_batch": 8, "seed": 1, "device": device, "documents": documents}
    with Loader(dataset, **options, prefetch=2) as loader:
        kept, addresses = [], set()
        for i in range(60):
            batch = next(loader)
            addresses.add(batch.tokens.data_ptr() if device == "cpu" else batch.tokens.ctypes.data)
            # A batch, a view of its tokens, a row of its targets, its positions: each alone keeps the memory.
            kept.append((batch, batch.tokens[:, 1:], batch.targets[3], batch.positions)[i % 4] if i % 3 == 0 else None)
        for i, part in enumerate(kept):
            if i % 3 == 0:
                twin = loader.batch_at(i)
                same = (twin.tokens, twin.tokens[:, 1:], twin.targets[3], twin.positions)[i % 4]
                assert np.array_equal(np.asarray(part.tokens if i % 4 == 0 else part), np.asarray(same))
        n_kept = 20 if documents else 15  # positions that were read when they were asked for are in memory of their own
        assert n_kept <= len(addresses) <= n_kept + 6, "what nobody holds is used again"
        pool = loader._memory
        del batch, kept, part, twin, same
        gc.collect()
        assert pool.n_free == 4, "more came back than the two buffers for each batch ahead that are kept"


@pytest.mark.parametrize("documents", [False, True])
def test_each_block_comes_back_with_its_last_array(dataset: Dataset, documents: bool):
    loader = Loader(dataset, seq_len=T, global_batch=8, device="numpy", documents=documents, prefetch=4)
    pool = loader._memory
    arrays = [pool.read(loader.core, 8 * i) for i in range(6)]
    assert pool.n_free == 0 and {len(block) for block in arrays} == {4 if documents else 2}
    for n_free in range(1, 7):
        *others, last = arrays.pop()
        view = last[1:]
        del others, last
        assert pool.n_free == n_free - 1, "a view of one array holds all"
        del view
        assert pool.n_free == n_free
    kept = [pool.read(loader.core, 0) for _ in range(7)]
    assert pool.n_free == 0
    del kept
    assert pool.n_free == 7


def interrupt_at(n: int) -> Callable[..., Any]:
    """A trace function that raises as a signal handler may: before the n-th bytecode of the loader's own code."""
    left = n

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if Path(frame.f_code.co_filename).name not in ("loader.py", "ring.py"):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    return trace


def test_an_interrupt_anywhere_in_next_leaves_the_loader_in_step(dataset: Dataset):
    n_interrupts = n_again = 0
    with Loader(dataset, seq_len=T, global_batch=8, seed=1, device="numpy", prefetch=2) as loader:
        for n in range(1, 400):
            before = loader.next_sample
            sys.settrace(interrupt_at(n))
            try:
                next(loader)
            except KeyboardInterrupt:
                n_interrupts += 1
            finally:
                sys.settrace(None)
            n_again += loader.next_sample == before
            assert loader.next_sample in (before, before + 8)
            for _ in range(2):
                sample = loader.next_sample
                batch = next(loader)
                assert batch.sample == sample == loader.next_sample - 8
                assert np.array_equal(batch.tokens, loader.batch_at(sample // 8).tokens)
    assert n_again > 30 and n_again <= n_interrupts < 300, "before, in and after the ring's own call"


def test_a_batch_larger_than_memory_is_refused(tiny: Dataset):
    # 2^49 bytes, beyond the address space of a process; then more than there are addresses.
    memory = _core.HostMemory((1 << 31) - 1, 1 << 14)
    core = Loader(tiny, seq_len=8, global_batch=1, device="numpy").core
    message = "no memory for a batch of 2147483647 x 16384 tokens and targets; hint: use a smaller micro_batch"
    for ask in (lambda: memory.read(core, 0), memory.start(core, 0, 2).next):
        with pytest.raises(MemoryError, match=message):
            ask()
    with pytest.raises(MemoryError, match="no memory for a batch"):
        _core.HostMemory((1 << 63), 1 << 3).read(core, 0)


LITTLE_MEMORY = """
import resource, sys
from gptrs import Dataset, Loader
core = Loader(Dataset(sys.argv[1]), seq_len=8, global_batch=(1 << 31) - 1, device="numpy").core
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
for ask in (core.row_starts, core.doc_ids):
    try:
        ask(0)
    except MemoryError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is kept by Linux alone")
def test_rows_and_documents_that_no_memory_holds_are_refused(tiny: Dataset):
    done = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY, str(tiny.path)], capture_output=True, text=True, timeout=60
    )
    whats = ("rows of 2147483647 x 1", "doc_ids of 2147483647 x 8")
    assert done.stdout.splitlines() == [f"no memory for {what}; hint: use a smaller micro_batch" for what in whats]
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="a process cannot choose its cores here")
def test_on_one_core_batches_are_the_same_however_fast_they_are_taken(dataset: Dataset):
    cores = os.sched_getaffinity(0)
    options = {"seq_len": 256, "global_batch": 16, "seed": 1, "device": "numpy"}
    with Loader(dataset, **options) as loader:
        expected = take(loader, 400)
    os.sched_setaffinity(0, {min(cores)})
    try:
        with Loader(dataset, **options) as loader:
            for i in range(400):
                if i % 100 > 80:
                    time.sleep(2e-4)  # the thread reads ahead again, then stops
                assert np.array_equal(next(loader).tokens, expected[i])
    finally:
        os.sched_setaffinity(0, cores)


def test_marks_of_a_batch_say_where_documents_begin(dataset: Dataset):
    for pack in ("stream", "bestfit"):
        options = {"seq_len": 256, "global_batch": 6, "seed": 1, "device": "numpy", "pack": pack}
        with Loader(dataset, **options, documents=True) as loader, Loader(dataset, **options) as lazy:
            for _ in range(30):
                batch, plain = next(loader), next(lazy)
                assert np.array_equal(batch.tokens, plain.tokens) and np.array_equal(batch.targets, plain.targets)
                assert np.array_equal(batch.positions, plain.positions)
                assert np.array_equal(batch.cu_seqlens, plain.cu_seqlens) and batch.cu_seqlens.dtype == np.int32
                assert batch.cu_seqlens.shape == (loader.n_cu_seqlens,) == (lazy.n_cu_seqlens,)
                assert batch.cu_seqlens[0] == 0 and batch.cu_seqlens[-1] == 6 * 256
                positions = np.concatenate([np.arange(n) for n in np.diff(batch.cu_seqlens)]).reshape(6, 256)
                assert np.array_equal(batch.positions, positions)
                docs = batch.doc_ids.ravel()
                for start, end in zip(batch.cu_seqlens, batch.cu_seqlens[1:], strict=False):
                    assert len(set(docs[start:end])) <= 1
    with pytest.raises(ValueError, match=r"expected cu_seqlens of at least . elements for the"):
        next(Loader(dataset, seq_len=2048, global_batch=4, max_documents=1, documents=True, device="numpy"))


def test_packed_rows_hold_every_token_once_and_predict_inside_documents(dataset: Dataset):
    ids, owner = dataset[:].astype(np.int64), dataset.doc_ids(0, len(dataset))
    borders = np.searchsorted(owner, np.arange(dataset.n_documents + 1))  # owner goes up, document by document
    T, seen, n_targets = 64, [], 0
    with Loader(dataset, seq_len=T, global_batch=1, seed=4, pack="bestfit", device="numpy") as loader:
        assert loader.n_rows == -(-(len(dataset) + round(loader.padding * loader.n_rows * T)) // T)
        for _ in range(loader.n_rows):
            batch = next(loader)
            docs = batch.doc_ids[0]
            for start, end in zip(batch.cu_seqlens, batch.cu_seqlens[1:], strict=False):
                if start == end or docs[start] < 0:
                    assert (batch.targets[0, start:end] == -100).all()
                    continue
                first, last = borders[docs[start] : docs[start] + 2]
                document = ids[first:last]
                piece = batch.tokens[0, start:end]
                at = next(i for i in range(0, len(document), T) if np.array_equal(document[i : i + end - start], piece))
                follow = np.append(document, -100)[at + 1 : at + 1 + end - start]
                assert np.array_equal(batch.targets[0, start:end], follow)
                seen.append(np.arange(first + at, min(first + at + end - start, last)))
                n_targets += int((follow >= 0).sum())
    assert np.array_equal(np.sort(np.concatenate(seen)), np.arange(len(dataset)))
    assert n_targets == len(dataset) - dataset.n_documents


def test_blocks_are_shuffled_and_complete(dataset: Dataset):
    with Loader(dataset, seq_len=8, global_batch=4, seed=5, shuffle="blocks", device="numpy") as loader:
        assert loader.state_dict()["order"] == "block-v1"
        starts = np.concatenate([next(loader).starts for _ in range(loader.n_rows // 4)]) // 8
    assert len(set(starts.tolist())) == len(starts) == loader.n_rows // 4 * 4 and (np.diff(starts) != 1).mean() > 0.95


def test_documents_and_positions_of_a_batch(dataset: Dataset, gpt2_like: Tokenizer):
    ids, owner = dataset[:], dataset.doc_ids(0, len(dataset))
    with Loader(dataset, seq_len=512, global_batch=8, seed=1, device="numpy") as loader:
        for _, batch in zip(range(20), loader, strict=False):
            assert batch.doc_ids.dtype == batch.positions.dtype == np.int32
            for start, docs, positions in zip(batch.starts, batch.doc_ids, batch.positions, strict=True):
                assert np.array_equal(docs, owner[start : start + 512])
                expected, at = [], 0
                for i in range(start, start + 512):
                    at = 0 if i == start or ids[i - 1] == gpt2_like.eot_id else at + 1
                    expected.append(at)
                assert positions.tolist() == expected


def test_torch_tensors_hold_the_same(dataset: Dataset):
    torch = pytest.importorskip("torch")
    with (
        Loader(dataset, seq_len=T, global_batch=8, seed=1) as loader,
        Loader(dataset, seq_len=T, global_batch=8, seed=1, device="numpy") as plain,
    ):
        for _ in range(10):
            a, b = next(loader), next(plain)
            assert a.tokens.dtype == a.targets.dtype == torch.int64
            assert a.doc_ids.dtype == a.positions.dtype == a.cu_seqlens.dtype == torch.int32
            assert a.tokens.is_contiguous() and a.tokens.shape == (8, T)
            for name in ("tokens", "targets", "doc_ids", "positions", "cu_seqlens"):
                assert np.array_equal(getattr(a, name).numpy(), getattr(b, name))


@pytest.mark.gpu
def test_cuda_tensors_hold_the_same(dataset: Dataset):
    torch = pytest.importorskip("torch")
    with (
        Loader(dataset, seq_len=T, global_batch=8, seed=1, device="cuda") as loader,
        Loader(dataset, seq_len=T, global_batch=8, seed=1, device="numpy") as plain,
    ):
        kept = [(next(loader), next(plain)) for _ in range(50)]
        for a, b in kept:
            assert a.tokens.is_cuda and a.tokens.is_contiguous() and a.targets.dtype == torch.int64
            for name in ("tokens", "targets", "doc_ids", "positions", "cu_seqlens"):
                assert np.array_equal(getattr(a, name).cpu().numpy(), getattr(b, name))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"global_batch": 10, "micro_batch": 4},
            "global_batch .10. must be a multiple of .*hint: use global_batch=8 or 12",
        ),
        ({"global_batch": 10, "world_size": 4}, "hint: use global_batch=8 or global_batch=12"),
        ({"global_batch": 0}, "global_batch"),
        ({"global_batch": 4, "world_size": 0}, "world_size must be 1 to 2147483647, got 0"),
        ({"global_batch": 4, "rank": 1}, "rank must be 0 to 0, got 1"),
        ({"global_batch": 4, "seed": -1}, "seed must be 0 to 18446744073709551615, got -1"),
        ({"global_batch": 1 << 70}, "global_batch must be 1 to 2147483647"),
        ({"global_batch": 4, "seq_len": 0}, "seq_len"),
        ({"global_batch": 4, "seq_len": 10**8}, "use a smaller seq_len"),
        ({"global_batch": 4, "micro_batch": 0}, "micro_batch"),
        ({"global_batch": 4, "pack": "crop"}, 'pack must be "stream" or "bestfit"'),
        ({"global_batch": 4, "shuffle": "files"}, 'shuffle must be True, False or "blocks"'),
        ({"global_batch": 4, "max_documents": 1 << 31}, "max_documents must be 1 to"),
        ({"global_batch": 4, "max_documents": 0}, "max_documents must be 1 to"),
        ({"global_batch": 4, "prefetch": 0}, "prefetch must be 1 to"),
        ({"global_batch": 4, "device": "tpu"}, 'device must be "cpu", "numpy" or a CUDA device'),
    ],
)
def test_arguments_that_do_not_fit_are_named_with_a_cure(dataset: Dataset, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Loader(dataset, **{"seq_len": T, "device": "numpy", **options})


def test_what_is_no_number_and_no_dataset_is_named(dataset: Dataset):
    with pytest.raises(TypeError, match=r"seq_len must be a whole number, got 8.0"):
        Loader(dataset, seq_len=8.0, global_batch=4, device="numpy")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"expected a Dataset or a Mixture, got '.*'; hint: gptrs.Dataset"):
        Loader(str(dataset.path), seq_len=8, global_batch=4, device="numpy")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"expected a slice of the tokens, got 3; hint: dataset\[start:end\]"):
        dataset[3]  # type: ignore[index]
    with pytest.raises(TypeError, match=r"global_batch must be a whole number, got '4'"):
        Loader(dataset, seq_len=T, global_batch="4", device="numpy")  # type: ignore[arg-type]
    for device in (None, 3):
        with pytest.raises(ValueError, match=rf'device must be "cpu", "numpy" or .*, got .{device}'):
            Loader(dataset, seq_len=T, global_batch=4, device=device)  # type: ignore[arg-type]


def test_numbers_of_numpy_and_a_device_of_torch_are_taken(dataset: Dataset):
    torch = pytest.importorskip("torch")
    sizes = {"seq_len": T, "global_batch": 4, "seed": 3, "rank": 0, "world_size": 1, "micro_batch": 2, "prefetch": 2}
    with Loader(dataset, **{name: np.int64(n) for name, n in sizes.items()}, device=torch.device("cpu")) as loader:
        batch, state = next(loader), loader.state_dict()
    with Loader(dataset, **sizes, device="cpu") as plain:
        assert torch.equal(batch.tokens, next(plain).tokens)
        assert json.loads(json.dumps(state)) == plain.state_dict()


def test_what_is_no_state_is_refused_and_leaves_the_loader_where_it_is(dataset: Dataset):
    with Loader(dataset, seq_len=T, global_batch=4, device="numpy") as loader:
        next(loader)
        state = loader.state_dict()
        for given in (None, [], json.dumps(state)):
            with pytest.raises(TypeError, match=r"expected the state of a loader, a dict, got .*; hint: .*state_dict"):
                loader.load_state_dict(given)  # type: ignore[arg-type]
        for n in (0, -4, "4", None, True, 4.0):
            with pytest.raises(ValueError, match=r"global_batch must be a whole number of at least 1, got .*; hint: "):
                loader.load_state_dict({**state, "global_batch": n})
        assert loader.state_dict() == state


def test_a_closed_loader_says_so_and_leaves_no_thread(dataset: Dataset):
    def n_threads() -> int:
        return len(list(Path("/proc/self/task").iterdir())) if Path("/proc/self/task").exists() else 0

    gc.collect()
    before = n_threads()
    loaders = [Loader(dataset, seq_len=T, global_batch=8, device="numpy") for _ in range(6)]
    assert n_threads() == before  # lazily
    for loader in loaders:
        next(loader)
    assert n_threads() == before + 6 or before == 0
    loaders[0].close()
    loaders[0].close()
    with pytest.raises(ValueError, match="the loader is closed"):
        next(loaders[0])
    del loader, loaders
    gc.collect()
    assert n_threads() == before


def test_reading_ahead_hides_the_reading(dataset: Dataset):
    """A consumer slower than the thread never waits: next() takes a small part of its time."""
    with Loader(dataset, seq_len=256, global_batch=32, seed=1, device="numpy") as loader:
        take(loader, 4)
        waited = 0.0
        for _ in range(50):
            time.sleep(0.005)
            start = time.perf_counter()
            next(loader)
            waited += time.perf_counter() - start
    assert waited < 0.3 * 50 * 0.005


def _rows(loader: Loader, n: int) -> list[list[list[int]]]:
    return [tokens.tolist() for tokens in take(loader, n)]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_loader_continues_in_another_process(dataset: Dataset, method: str):
    loader = Loader(dataset, seq_len=T, global_batch=8, seed=1, device="numpy")
    take(loader, 3)  # its thread runs
    with multiprocessing.get_context(method).Pool(1) as pool:
        there = pool.apply_async(_rows, (loader, 6)).get(timeout=60)
    assert there == _rows(loader, 6)
    loader.close()


def test_a_fork_in_the_middle_of_reading_continues(dataset: Dataset):
    loader = Loader(dataset, seq_len=T, global_batch=64, seed=1, device="numpy")
    expected = [loader.batch_at(i).tokens for i in range(40)]
    for i in range(0, 30, 3):
        take(loader, 3)
        child = os.fork()
        if child == 0:
            same = all(np.array_equal(a, b) for a, b in zip(take(loader, 5), expected[i + 3 :], strict=False))
            loader.close()
            os._exit(0 if same else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    loader.close()


def test_a_worker_of_a_torch_dataloader_reads_the_same(dataset: Dataset):
    torch = pytest.importorskip("torch")
    with Loader(dataset, seq_len=T, global_batch=8, seed=1) as loader:
        expected = [batch.clone() for batch in take(loader, 5)]

        class Stream(torch.utils.data.IterableDataset):
            def __iter__(self):
                return (tokens for tokens in take(Loader(dataset, seq_len=T, global_batch=8, seed=1), 5))

        for workers in (0, 1):
            got = list(torch.utils.data.DataLoader(Stream(), batch_size=None, num_workers=workers))
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_a_pickled_loader_continues_where_it_stood(dataset: Dataset):
    loader = Loader(dataset, seq_len=T, global_batch=8, micro_batch=4, seed=1, device="numpy")
    take(loader, 3)
    twin = pickle.loads(pickle.dumps(loader))  # noqa: S301
    assert twin.state_dict() == loader.state_dict()
    assert np.array_equal(next(twin).tokens, next(loader).tokens)


def test_other_threads_run_while_the_loader_waits(dataset: Dataset):
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    with Loader(dataset, seq_len=T, global_batch=8, device="numpy") as loader:
        take(loader, 200)
    done.set()
    thread.join(5)
    assert not thread.is_alive()


def test_threads_that_share_a_loader_get_each_batch_once(dataset: Dataset):
    """Whatever they interrupt: also what they move it to, and a fork while one of them waits for its batch."""
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with Loader(dataset, seq_len=512, global_batch=16, device="numpy", prefetch=1) as loader:
            for _ in range(8):
                got: list[Batch] = []

                def read(got: list[Batch] = got) -> None:
                    got.extend(next(loader) for _ in range(8))

                threads = [threading.Thread(target=read) for _ in range(4)]
                for thread in threads:
                    thread.start()
                child = os.fork()
                if child == 0:
                    batch = next(loader)
                    os._exit(0 if np.array_equal(batch.tokens, loader.batch_at(batch.sample // 16).tokens) else 1)
                for thread in threads:
                    thread.join()
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
                assert sorted(batch.sample for batch in got) == list(range(0, 32 * 16, 16))
                assert all(np.array_equal(b.tokens, loader.batch_at(b.sample // 16).tokens) for b in got)
                assert np.array_equal(next(loader).tokens, loader.batch_at(32).tokens)
                loader.load_state_dict({**loader.state_dict(), "next_sample": 0})
    finally:
        sys.setswitchinterval(switch)


def test_a_process_with_a_running_loader_ends(dataset: Dataset):
    """A loader that nobody closed does not hold the interpreter back."""
    code = f"""
        import gptrs
        loader = gptrs.Loader(gptrs.Dataset({str(dataset.path)!r}), seq_len=8, global_batch=4, device="numpy")
        next(loader)
        print("done")
    """
    end = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    assert (end.returncode, end.stdout, end.stderr) == (0, "done\n", "")


def test_what_is_lent_must_fit(dataset: Dataset):
    core = Loader(dataset, seq_len=T, global_batch=4, device="numpy").core
    with pytest.raises(ValueError, match="expected tokens of 4 x 32 elements, got 64"):
        core.fill(0, np.zeros((1, 4, T), np.int32))
    with pytest.raises(ValueError, match="expected rows of 4 x 33 elements, got 128"):
        core.fill(0, np.zeros((4, T), np.uint16))
    with pytest.raises(ValueError, match="writable, C-contiguous"):
        core.fill(0, np.zeros((T, 4, 2), np.int32).T)
    fixed = np.zeros((2, 4, T), np.int32)
    fixed.flags.writeable = False
    with pytest.raises(ValueError, match="writable, C-contiguous"):
        core.fill(0, fixed)
    for wrong in (
        np.zeros((2, 4, T), np.int64),
        np.zeros((2, 4, T), np.float64),
        np.zeros((4, T + 1), np.int16),
        [1, 2],
        None,
    ):
        with pytest.raises((TypeError, BufferError)):
            core.fill(0, wrong)
    rows = np.zeros((4, T + 1), np.uint16)
    core.fill(0, rows)
    both = np.zeros((2, 4, T), np.int32)
    core.fill(0, both)
    assert np.array_equal(rows[:, :-1], both[0]) and np.array_equal(rows[:, 1:], both[1]) and rows.any()
