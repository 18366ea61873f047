"""Learning rate and batch: pure functions of where a run stands."""

import math
from itertools import accumulate, pairwise

import pytest

from gptrs.train.schedule import Decay, Kind, batch_rows, learning_rate, rows_before, stand

KINDS: tuple[tuple[Kind, Decay], ...] = (
    ("cosine", "linear"),
    ("linear", "linear"),
    ("wsd", "linear"),
    ("wsd", "1-sqrt"),
    ("deepseek", "linear"),
)


def test_the_worked_example() -> None:
    rates = [learning_rate(step, peak=1.0, min_lr=0.0, warmup_steps=2, steps=5) for step in range(5)]
    assert rates == pytest.approx([1 / 3, 2 / 3, 1.0, 0.5, 0.0])


def test_it_rises_to_the_peak_then_falls_to_the_minimum_and_stays() -> None:
    rates = [learning_rate(step, peak=3e-4, min_lr=3e-5, warmup_steps=10, steps=100) for step in range(130)]
    assert rates[:11] == sorted(rates[:11]) and rates[10] == max(rates) == 3e-4
    assert rates[10:100] == sorted(rates[10:100], reverse=True) and rates[99] == 3e-5
    assert set(rates[99:]) == {3e-5}


def test_halfway_of_the_cosine_is_the_mean() -> None:
    assert learning_rate(50, peak=1.0, min_lr=0.2, warmup_steps=0, steps=101) == pytest.approx(0.6)


def test_linear_goes_down_by_equal_steps() -> None:
    rates = [learning_rate(i, peak=1.0, min_lr=0.2, warmup_steps=0, steps=5, kind="linear") for i in range(5)]
    assert rates == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


@pytest.mark.parametrize("decay", ["linear", "1-sqrt"])
def test_wsd_is_flat_until_its_last_share(decay: Decay) -> None:
    given = {"peak": 1.0, "min_lr": 0.1, "warmup_steps": 10, "steps": 101}
    rates = [learning_rate(i, **given, kind="wsd", decay=decay, decay_share=0.25) for i in range(101)]  # type: ignore[arg-type]
    assert set(rates[10:76]) == {1.0} and rates[76] < 1.0 and rates[100] == 0.1
    x = 9 / 25  # at update 84
    assert rates[84] == pytest.approx(0.1 + 0.9 * (1 - x if decay == "linear" else 1 - math.sqrt(x)))


def test_wsd_takes_its_share_as_it_is_written() -> None:
    """1 - 0.7 is a little more than 0.3 in binary, which made the peak last an update longer."""
    rates = [learning_rate(i, peak=1.0, min_lr=0.0, warmup_steps=0, steps=21, kind="wsd", decay_share=0.7)
             for i in range(21)]  # fmt: skip
    assert rates == pytest.approx([1.0] * 7 + [1 - i / 14 for i in range(1, 15)])


def test_deepseek_has_v3s_rates_at_v3s_places() -> None:
    """Section 4.2 in steps of a billion tokens: 10,000 flat, 4,300 down, 333 at a tenth, 167 at 7.3e-6."""
    given = {"peak": 2.2e-4, "min_lr": 7.3e-6, "warmup_steps": 0, "steps": 14_801}
    rates = [learning_rate(i, **given, kind="deepseek") for i in range(14_801)]  # type: ignore[arg-type]
    assert set(rates[:10_001]) == {2.2e-4} and rates[10_002] < 2.2e-4
    assert rates[12_150] == pytest.approx((2.2e-4 + 2.2e-5) / 2)  # halfway of the cosine
    assert rates[14_299] > 2.2e-5 and set(rates[14_301:14_632]) == {2.2e-5}
    assert set(rates[14_634:]) == {7.3e-6}


@pytest.mark.parametrize(("kind", "decay"), KINDS)
@pytest.mark.parametrize(("warmup_steps", "steps"), [(0, 1), (1, 1), (0, 2), (5, 5), (5, 6), (100, 20), (3, 40)])
def test_every_rate_is_between_zero_and_the_peak_and_only_the_warm_up_rises(
    kind: Kind, decay: Decay, warmup_steps: int, steps: int
) -> None:
    given = {"peak": 1.0, "min_lr": 0.0, "warmup_steps": warmup_steps, "steps": steps}
    for share in (0.001, 0.3, 1.0):
        rates = [learning_rate(i, **given, kind=kind, decay=decay, decay_share=share) for i in range(steps)]  # type: ignore[arg-type]
        assert all(0.0 <= rate <= 1.0 for rate in rates)
        assert all(b <= a for a, b in pairwise(rates[warmup_steps:]))


@pytest.mark.parametrize(("kind", "decay"), KINDS)
def test_every_kind_comes_down_by_the_clock(kind: Kind, decay: Decay) -> None:
    steps = [stand(i, steps=1200, elapsed_s=float(i), max_seconds=180) for i in range(180)]
    given = {"peak": 1.0, "min_lr": 0.01, "warmup_steps": 50, "steps": 1200}
    rates = [learning_rate(step, **given, kind=kind, decay=decay) for step in steps]  # type: ignore[arg-type]
    assert max(rates) > 0.95 and rates[-1] < 0.12


def test_the_batch_grows_by_whole_units_and_stays() -> None:
    rows = [batch_rows(step, start=2, full=8, warmup_steps=6, unit=2) for step in range(9)]
    assert rows == [2, 2, 4, 4, 6, 6, 8, 8, 8]
    assert {batch_rows(step, start=8, full=8, warmup_steps=0, unit=8) for step in range(5)} == {8}
    v3 = [batch_rows(step, start=3072, full=15_360, warmup_steps=5000, unit=512) for step in range(6000)]
    assert v3 == sorted(v3) and v3[0] == 3072 and v3[4999] < v3[5000] == 15_360
    assert all(n % 512 == 0 for n in v3)


def test_the_rows_before_an_update_are_the_sum_of_those_before() -> None:
    given = {"start": 6, "full": 24, "warmup_steps": 11, "unit": 3}
    sums = [0, *accumulate(batch_rows(step, **given) for step in range(30))]
    assert [rows_before(step, **given) for step in range(31)] == sums
    long = {"start": 3072, "full": 15_360, "warmup_steps": 5000, "unit": 512}
    assert rows_before(6000, **long) == sum(batch_rows(step, **long) for step in range(6000))
    assert rows_before(7, start=8, full=8, warmup_steps=0, unit=8) == 56


def test_a_run_that_fits_its_time_never_sees_the_clock() -> None:
    for step in range(1200):
        elapsed_s = 2.0 + step * 168 / 1200  # a slow start, then the pace that leaves 10 of 180 s
        assert stand(step, steps=1200, elapsed_s=elapsed_s, max_seconds=180) == step
    assert stand(7, steps=1200, elapsed_s=1e9, max_seconds=None) == 7


@pytest.mark.parametrize("pace_s", [0.2, 1.0, 6.0])
def test_a_run_that_does_not_fit_its_time_still_warms_up_and_ends_low(pace_s: float) -> None:
    steps = [stand(i, steps=1200, elapsed_s=i * pace_s, max_seconds=180) for i in range(int(180 / pace_s))]
    rates = [learning_rate(step, peak=1.0, min_lr=0.1, warmup_steps=50, steps=1200) for step in steps]
    assert steps == sorted(steps) and steps[-1] < 1200
    assert rates[0] < 0.05 and max(rates) > 0.95 and rates[-1] < 0.11
