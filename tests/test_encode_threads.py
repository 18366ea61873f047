"""One tokenizer in many threads, forked children, process pools and DataLoader workers: always the same ids."""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from gptrs import Tokenizer


@pytest.fixture(scope="module")
def texts(stdlib_files: list[Path]) -> list[str]:
    return [path.read_text("utf-8") for path in stdlib_files[:12]]


@pytest.fixture(scope="module")
def warm(texts: list[str]) -> Tokenizer:
    """A tokenizer with the warm words of its training."""
    return Tokenizer.train_from_iterator(texts, 1500)


@pytest.fixture
def frequent_switches() -> Iterator[None]:
    """Threads take turns a thousand times as often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


def test_eight_threads_use_every_call_at_once(warm: Tokenizer, texts: list[str], frequent_switches: None):
    tok, large = warm, "".join(texts) * 4  # long enough for the warm words and for threads
    expected = [tok.encode_ordinary(text) for text in texts]
    spans = [(texts[0], False), ("<|endoftext|>", True), (texts[1], True)]
    of_spans = tok.encode_spans(spans)
    dropped = tok.encode_batch(texts, dropout=0.3, seed=1).to_list()
    all_ids = tok.encode_ordinary(large)
    start = threading.Barrier(8)

    def work(number: int) -> int:
        start.wait()
        for i in range(number, number + 6):
            text = texts[i % len(texts)]
            ids = expected[i % len(texts)]
            assert tok.encode(text, disallowed_special=()) == ids and tok.count(text) == len(ids)
            assert tok.encode_batch(texts, threads=2).to_list() == expected
            assert tok.encode_with_offsets(text)[0] == ids and tok.decode(ids) == text
            assert tok.encode_spans(spans) == of_spans
            assert tok.encode_batch(texts, dropout=0.3, seed=1, threads=2).to_list() == dropped
            decoder = tok.decoder()
            assert "".join(decoder.push(token) for token in ids[:2000]) + decoder.finish() == tok.decode(ids[:2000])
            assert tok.count_batch(texts).tolist() == list(map(len, expected))
        assert tok.encode_ordinary(large) == all_ids
        assert Tokenizer.train_from_iterator(texts[:2], 300, threads=2).vocab_size == 300
        return number

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == list(range(8))


def test_children_forked_while_warm_caches_are_made_encode_alike(texts: list[str]):
    large = "".join(texts) * 4
    expected = Tokenizer.train_from_iterator(texts, 1500).encode_ordinary(large)
    for _ in range(3):
        tok = Tokenizer.train_from_iterator(texts, 1500)  # its first large call makes the warm cache
        with ThreadPoolExecutor(2) as pool:
            busy = [pool.submit(lambda tok=tok: tok.encode_ordinary(large)) for _ in range(2)]
            children = []
            for _ in range(3):
                child = os.fork()
                if child == 0:
                    os._exit(0 if tok.encode_ordinary(large) == expected else 1)
                children.append(child)
            assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 3
            assert all(future.result() == expected for future in busy)


def _lie_where_those_lay_that_are_gone(warm: Tokenizer, texts: list[str]) -> None:
    large = ["".join(texts) * 8, "".join(reversed(texts)) * 8]
    assert min(map(len, large)) > 1 << 20
    expected = [warm.encode_batch([text], threads=1).ids.copy() for text in large]
    held = [warm.encode_batch([text], threads=1).ids for text in large]
    part = held[0][5:-5]
    places = {ids.ctypes.data for ids in held}
    assert len(places) == 2, "both are used"
    held[0][:] = 7  # a result can be written to
    del held
    assert np.all(part == 7), "a part holds the whole"
    again = [warm.encode_batch([text], threads=1).ids for text in large]
    assert len({ids.ctypes.data for ids in again} & places) == 1
    del part
    more = warm.encode_batch(large[:1], threads=1).ids
    assert {ids.ctypes.data for ids in [*again, more]} > places
    for ids, of in zip([*again, more], [*expected, expected[0]], strict=True):
        assert np.array_equal(ids, of)


def _are_as_many_as_wanted(warm: Tokenizer, texts: list[str]) -> None:
    large = "".join(texts) * 8
    held = [warm.encode_batch([large], threads=1).ids for _ in range(40)]
    places = {ids.ctypes.data for ids in held}
    del held
    again = [warm.encode_batch([large], threads=1).ids for _ in range(40)]
    assert len({ids.ctypes.data for ids in again}) == 40 == len(places)
    assert len({ids.ctypes.data for ids in again[:16]} & places) == 16, "as many are kept"
    assert all(np.array_equal(ids, again[0]) for ids in again)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is kept on Linux")
@pytest.mark.parametrize("results", [_lie_where_those_lay_that_are_gone, _are_as_many_as_wanted])
def test_large_results(warm: Tokenizer, texts: list[str], results: Callable[[Tokenizer, list[str]], None]):
    """In a process of their own: what is kept in this one comes from whatever ran before."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply_async(results, (warm, texts)).get(timeout=120)


def _encode(task: tuple[Tokenizer, str]) -> list[int]:
    tok, text = task
    assert tok.encode_batch([text] * 3, threads=2).to_list() == [tok.encode_ordinary(text)] * 3
    return tok.encode_ordinary(text)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_process_pools_encode(warm: Tokenizer, texts: list[str], method: str):
    expected = [warm.encode_ordinary(text) for text in texts]
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map_async(_encode, [(warm, text) for text in texts]).get(timeout=120) == expected


class Texts:
    """A dataset that encodes in the worker."""

    def __init__(self, tok: Tokenizer, texts: list[str]) -> None:
        self.tok, self.texts = tok, texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, i: int) -> tuple[int, list[int]]:
        assert self.tok.encode_batch(self.texts[:3]).to_list()[0] == self.tok.encode_ordinary(self.texts[0])
        return i, self.tok.encode_ordinary(self.texts[i])


def _as_it_is(items: list[tuple[int, list[int]]]) -> list[tuple[int, list[int]]]:
    return items


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_dataloader_workers_encode(warm: Tokenizer, texts: list[str], method: str):
    data = pytest.importorskip("torch.utils.data")
    warm.encode_batch(texts)  # the parent has caches and had threads
    loader = data.DataLoader(
        Texts(warm, texts),
        batch_size=4,
        num_workers=2,
        multiprocessing_context=method,
        collate_fn=_as_it_is,
        timeout=120,
    )
    got = dict(item for batch in loader for item in batch)
    assert got == {i: warm.encode_ordinary(text) for i, text in enumerate(texts)}
