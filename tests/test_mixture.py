"""Several datasets as one stream: exact shares, stages, limits, and the same stream on any number of ranks."""

import doctest
import json
from pathlib import Path

import numpy as np
import pytest

import gptrs.mixture
from gptrs import Dataset, Loader, Mixture, Stage, Tokenizer, prepare

T = 8


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    """Three datasets of 250, 125 and 40 rows."""
    folder = tmp_path_factory.mktemp("mixture")
    tok = Tokenizer.train_from_iterator(["ab"], 256, special_tokens=[])
    datasets = {}
    for i, (name, n_rows) in enumerate({"web": 250, "code": 125, "books": 40}.items()):
        (folder / f"{name}.txt").write_bytes(bytes((i * 40 + k) % 128 for k in range(T * n_rows + 1)))
        datasets[name] = prepare(folder / f"{name}.txt", tok, folder / name)
    return datasets


def names(loader: Loader, n: int) -> list[str]:
    return [name for _, batch in zip(range(n), loader, strict=False) for name in batch.sources]


def test_the_docstrings_example_runs():
    results = doctest.testmod(gptrs.mixture)
    assert results.failed == 0 and results.attempted >= 7


def test_each_source_has_its_share_and_its_rows_once_an_epoch(sources: dict[str, Dataset]):
    mixture = Mixture(sources, {"web": 5, "code": 2, "books": 1})
    with Loader(mixture, seq_len=T, global_batch=8, seed=1, device="numpy") as loader:
        rows: dict[str, list[int]] = {name: [] for name in sources}
        for _, batch in zip(range(512), loader, strict=False):
            for name, start, tokens in zip(batch.sources, batch.starts, batch.tokens, strict=True):
                rows[name].append(start // T)
                assert np.array_equal(tokens, sources[name][int(start) : int(start) + T])
        assert {name: len(of) for name, of in rows.items()} == {"web": 2560, "code": 1024, "books": 512}
        assert loader.epochs == {"web": 2560 / 250, "code": 1024 / 125, "books": 512 / 40}
    for name, of in rows.items():
        n = sources[name].n_rows(T)
        epochs = [of[i : i + n] for i in range(0, len(of) - n, n)]
        assert all(sorted(epoch) == list(range(n)) for epoch in epochs) and epochs[0] != epochs[1]


def test_without_weights_the_tokens_count(sources: dict[str, Dataset]):
    with Loader(Mixture(sources), seq_len=T, global_batch=4, device="numpy") as loader:
        got = names(loader, 1024)
    n_tokens = {name: dataset.n_tokens for name, dataset in sources.items()}
    for name, n in n_tokens.items():
        assert abs(got.count(name) - 4096 * n / sum(n_tokens.values())) <= 1


def test_a_mixture_without_an_end_has_no_number_of_samples(sources: dict[str, Dataset]):
    endless = [Stage({"web": 1}, samples=10), Stage({"code": 1})]
    unbounded = {"web": 1}  # of a source that has no weight behind the first stage
    for mixture in (Mixture(sources), Mixture(sources, stages=endless, max_epochs=unbounded)):
        with Loader(mixture, seq_len=T, global_batch=4, device="numpy") as loader:
            assert loader.n_samples is None
            assert len(names(loader, 10)) == 40


def test_stages_switch_at_their_sample_and_end(sources: dict[str, Dataset]):
    stages = [Stage({"web": 1}, samples=100), Stage({"code": 1, "books": 3}, samples=60)]
    with Loader(Mixture(sources, stages=stages), seq_len=T, global_batch=4, device="numpy") as loader:
        assert loader.n_samples == 160
        got = names(loader, 1000)
    assert len(got) == 160 and set(got[:100]) == {"web"} and got[100:].count("books") == 45
    with Loader(Mixture(sources, stages=stages), seq_len=T, global_batch=12, device="numpy") as loader:
        assert len(names(loader, 1000)) == 156, "what does not fill a batch on every rank is left out"


def test_nothing_is_repeated_more_often_than_allowed(sources: dict[str, Dataset]):
    for limit in (2, {"books": 2}):
        mixture = Mixture(sources, {"web": 1, "code": 1, "books": 2}, max_epochs=limit)
        with Loader(mixture, seq_len=T, global_batch=1, device="numpy") as loader:
            assert loader.n_samples is not None and loader.n_samples < 200
            got = names(loader, loader.n_samples)
            assert got.count("books") == 80
            for _ in range(2):
                with pytest.raises(ValueError, match='source "books" has given its 40 rows 2 times; hint: raise'):
                    next(loader)
            assert loader.next_sample == len(got)


def test_a_mixtures_state_continues_on_any_ranks_and_refuses_another(sources: dict[str, Dataset]):
    mixture = Mixture(sources, {"web": 5, "code": 2, "books": 1})
    options = {"seq_len": T, "global_batch": 12, "seed": 3, "device": "numpy", "pack": "bestfit"}
    with Loader(mixture, **options) as loader:
        expected = np.concatenate([next(loader).tokens for _ in range(40)])
        state = json.loads(json.dumps({**loader.state_dict(), "next_sample": 120}))
        assert len(json.dumps(state)) < 1024
    ranks = [Loader(mixture, **options, rank=r, world_size=3, micro_batch=2) for r in range(3)]
    for rank in ranks:
        rank.load_state_dict(state)
    got = np.concatenate([next(rank).tokens for _ in range(60) for rank in ranks])
    assert np.array_equal(got, expected[120:])
    others = {
        "fingerprint": Mixture(dict.fromkeys(sources, sources["web"]), {"web": 5, "code": 2, "books": 1}),
        "mixture": Mixture(sources, {"web": 5, "code": 3, "books": 1}),
    }
    for field, other in others.items():
        with pytest.raises(ValueError, match=f"the loader state has {field} "):
            Loader(other, **options).load_state_dict(state)


def test_what_does_not_fit_is_named(sources: dict[str, Dataset], gpt2_like: Tokenizer, tmp_path: Path):
    with pytest.raises(ValueError, match="stage 0 names 'wep'; expected one of web, code, books"):
        Mixture(sources, {"wep": 1})
    with pytest.raises(ValueError, match="max_epochs names 'wep'"):
        Mixture(sources, max_epochs={"wep": 1})
    with pytest.raises(ValueError, match="expected at least one source"):
        Mixture({})
    with pytest.raises(ValueError, match="weights or stages, got both"):
        Mixture(sources, {"web": 1}, stages=[Stage({"web": 1})])
    with pytest.raises(ValueError, match=r"samples of stage 0 must be 1 to .*, got -5"):
        Mixture(sources, stages=[Stage({"web": 1}, samples=-5)])
    with pytest.raises(ValueError, match=r"max_epochs of source 'code' must be 1 to .*, got -1"):
        Mixture(sources, max_epochs={"code": -1})
    for weights, message in (
        ({"code": -1.0}, r'stage 0: weight of "code" must be finite and not negative, got -1'),
        ({"web": float("nan")}, r'stage 0: weight of "web" must be finite and not negative, got NaN'),
        ({"web": 1, "code": 1e-9}, r'stage 0: weight of "code" must be 0 or at least a 2\^20th of the sum, got 1e-9'),
        ({"web": 0}, "expected at least one weight above 0, got none"),
    ):
        with pytest.raises(ValueError, match=message):
            Loader(Mixture(sources, weights), seq_len=T, global_batch=1, device="numpy")
    (tmp_path / "a.txt").write_text("other ids " * 50)
    other = prepare(tmp_path / "a.txt", gpt2_like, tmp_path / "other")
    mixed = Mixture({**sources, "other": other})
    with pytest.raises(ValueError, match=r"was made by the tokenizer with digest .*; hint: prepare both with one"):
        Loader(mixed, seq_len=T, global_batch=1, device="numpy")


def test_what_is_no_dataset_stage_or_weight_is_named(sources: dict[str, Dataset]):
    for given, message in (
        ({"web": "folder"}, r"expected a Dataset as source 'web', got 'folder'; hint: gptrs.Dataset\(path\) opens one"),
        ({1: sources["web"]}, r"expected a name as source, got 1"),
    ):
        with pytest.raises(TypeError, match=message):
            Mixture(given)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"expected a mapping of names to datasets, got list"):
        Mixture([sources["web"]])  # type: ignore[arg-type]
    for stages in ([({"web": 1}, 5)], Stage({"web": 1})):
        with pytest.raises(TypeError, match=r"expected a list of stages, got .*; hint: \[Stage\("):
            Mixture(sources, stages=stages)  # type: ignore[arg-type]
    for given in ({"weights": ["web"]}, {"stages": [Stage(["web"], 5)]}):  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"expected a mapping of names to weights in stage 0, got \['web'\]"):
            Mixture(sources, **given)
    for weight in (None, "much", 10**400):
        with pytest.raises((TypeError, ValueError), match=r"weight of 'web' in stage 0 must be a number, got "):
            Mixture(sources, {"web": weight})  # type: ignore[dict-item]


def test_a_source_that_is_shorter_than_a_row_is_named(sources: dict[str, Dataset]):
    seq_len = sources["books"].n_tokens
    with pytest.raises(
        ValueError, match=rf"source 'books' needs {seq_len + 1} tokens for .*, it has {seq_len}; hint: "
    ):
        Loader(Mixture(sources), seq_len=seq_len, global_batch=1, device="numpy")
    with Loader(Mixture(sources), seq_len=seq_len, global_batch=1, device="numpy", pack="bestfit") as loader:
        assert next(loader).tokens.shape == (1, seq_len)
