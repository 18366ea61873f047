"""The learning rate: a pure function of where a run stands."""

import pytest

from gptrs.train.schedule import learning_rate, stand


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


@pytest.mark.parametrize(("warmup_steps", "steps"), [(0, 1), (1, 1), (5, 5), (5, 6), (100, 20)])
def test_short_runs_keep_every_rate_between_zero_and_the_peak(warmup_steps: int, steps: int) -> None:
    for step in range(steps):
        assert 0.0 <= learning_rate(step, peak=1.0, min_lr=0.0, warmup_steps=warmup_steps, steps=steps) <= 1.0


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
