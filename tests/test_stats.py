"""Estimates and intervals: hand-worked values, properties, and the coverage of the clustered bootstrap."""

import numpy as np
import pandas as pd
import pytest
from asu import stats
from asu.stats import Estimate
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

ONE = np.ones((1, 4))
values = st.lists(st.floats(-1e3, 1e3).map(lambda x: round(x, 3)), min_size=3, max_size=25)


def at_ones(statistic, rows):
    return float(statistic(np.ones((1, rows)))[0])


@pytest.mark.parametrize("estimate, text", [
    (Estimate(12.3, 10.1, 14.0, "s"), "12.3 [10.1, 14.0] s"),
    (Estimate(0.51234, 0.4, 0.6), "0.512 [0.400, 0.600]"),
    (Estimate(1234.5, unit="tok/s"), "1,234 tok/s"),
    (Estimate(np.nan, unit="s"), "not known"),
    (Estimate(np.inf, 12.3, np.inf, "s"), "not reached [12.3, ∞] s"),
    (Estimate(np.inf, np.inf, np.inf), "not reached"),
    (Estimate(1103.0, 980.0, 1363.4, "tok/s"), "1,103 [980, 1,363] tok/s"),
    (Estimate(0.0, 0.0, 0.0, "share"), "0 [0, 0] share"),
])
def test_an_estimate_prints_with_its_interval_and_unit(estimate, text):
    assert str(estimate) == text


def test_an_estimate_survives_its_record():
    estimate = Estimate(1.5, 1.0, 2.0, "×", 7)
    assert Estimate.of(estimate.as_dict()) == estimate
    assert Estimate.of({"value": 3, "lo": None}).value == 3
    assert not Estimate.of({"value": 3, "lo": None, "hi": 4}).has_interval
    assert Estimate.of(2).value == 2.0
    assert not Estimate.of(None).known


def test_weighted_statistics_by_hand():
    x = [1.0, 2.0, 3.0, np.nan]
    weights = np.array([[1, 1, 1, 1], [3, 0, 1, 5], [0, 0, 0, 9]], float)
    np.testing.assert_allclose(stats.mean(x)(weights), [2, 1.5, np.nan])
    np.testing.assert_allclose(stats.quantile(x, 0.5)(weights), [2, 1, np.nan])
    np.testing.assert_allclose(stats.maximum(x)(weights), [3, 3, np.nan])
    np.testing.assert_allclose(stats.minimum(x)(weights), [1, 1, np.nan])
    np.testing.assert_allclose(stats.ratio_of_sums([1, 2, 3, 4], [1, 1, 1, 1])(weights), [2.5, 26 / 9, 4])


def test_quantile_is_the_inverted_cdf_and_obeys_a_second_weight():
    assert at_ones(stats.quantile([10, 20, 30, 40], 0.5), 4) == 20
    assert at_ones(stats.quantile([10, 20, 30, 40], 1.0), 4) == 40
    assert at_ones(stats.quantile([10, 20], 0.5, weights=[1, 15]), 2) == 20


@given(values, st.floats(0.01, 0.99))
def test_quantile_agrees_with_numpy(x, q):
    assert at_ones(stats.quantile(x, q), len(x)) == pytest.approx(np.quantile(x, q, method="inverted_cdf"))


@given(values, st.data())
@settings(max_examples=60)
def test_a_weight_is_the_same_as_a_repeated_row(x, data):
    counts = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(x), max_size=len(x))))
    y = np.array(data.draw(st.lists(st.integers(-5, 5), min_size=len(x), max_size=len(x))), float)
    rows = np.repeat(np.arange(len(x)), counts)
    if len(rows) < 3:
        return
    x = np.array(x)
    seen = y > 0
    for make in [lambda r: stats.mean(x[r]), lambda r: stats.quantile(x[r], 0.7), lambda r: stats.spearman(x[r], y[r]),
                 lambda r: stats.correlation(x[r], y[r]), lambda r: stats.slope(y[r], x[r]),
                 lambda r: stats.km_quantile(abs(x[r]), seen[r]),
                 lambda r: stats.km_mean(abs(x[r]), seen[r], until=50.0)]:
        weighted = float(make(np.arange(len(x)))(counts[None, :].astype(float))[0])
        assert weighted == pytest.approx(at_ones(make(rows), len(rows)), rel=1e-6, abs=1e-6, nan_ok=True)


def test_slope_and_correlations_agree_with_scipy():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 6, 60).astype(float)
    y = 2 * x + rng.normal(size=60)
    assert at_ones(stats.slope(x, y), 60) == pytest.approx(scipy_stats.linregress(x, y).slope)
    assert at_ones(stats.correlation(x, y), 60) == pytest.approx(scipy_stats.pearsonr(x, y).statistic)
    assert at_ones(stats.spearman(x, y), 60) == pytest.approx(scipy_stats.spearmanr(x, y).statistic)
    assert np.isnan(at_ones(stats.slope(np.ones(60), y), 60))
    assert np.isnan(at_ones(stats.spearman(np.ones(60), y), 60))


# Six requests: first visible token after 1, 2, 2, 4 s; two still thinking when cut off at 2 s and at 5 s.
TIME = [1, 2, 2, 2, 4, 5]
SEEN = [True, True, True, False, True, False]


def test_kaplan_meier_by_hand():
    table = stats.kaplan_meier(TIME, SEEN)
    assert table.time.tolist() == [0, 1, 2, 4, 5]
    assert table.at_risk.tolist() == [6, 6, 5, 2, 1]
    assert table.events.tolist() == [0, 1, 2, 1, 0]
    assert table.censored.tolist() == [0, 0, 1, 0, 1]
    np.testing.assert_allclose(table.survival, [1, 5 / 6, 1 / 2, 1 / 4, 1 / 4])
    # Greenwood at t = 2: 1/(6·5) + 2/(5·3) = 1/6; log(−log) half width = 1.96·√(1/6)/ln 2
    half = 1.959964 * np.sqrt(1 / 6) / np.log(2)
    assert table.lo[2] == pytest.approx(0.5 ** np.exp(half), rel=1e-5)
    assert table.hi[2] == pytest.approx(0.5 ** np.exp(-half), rel=1e-5)


def test_kaplan_meier_agrees_with_scipy():
    rng = np.random.default_rng(3)
    time, seen = rng.integers(1, 20, 80).astype(float), rng.random(80) < 0.6
    data = scipy_stats.CensoredData(uncensored=time[seen], right=time[~seen])
    theirs = scipy_stats.ecdf(data).sf
    ours = stats.kaplan_meier(time, seen)
    np.testing.assert_allclose(theirs.evaluate(ours.time), ours.survival, atol=1e-12)


def test_survivor_statistics_by_hand():
    assert at_ones(stats.km_quantile(TIME, SEEN, 0.5), 6) == 2
    assert at_ones(stats.km_quantile(TIME, SEEN, 0.75), 6) == 4
    assert at_ones(stats.km_quantile(TIME, SEEN, 0.9), 6) == np.inf
    # 1·1 + 1·5/6 + 2·1/2 + 1·1/4
    assert at_ones(stats.km_mean(TIME, SEEN), 6) == pytest.approx(1 + 5 / 6 + 1 + 1 / 4)
    assert at_ones(stats.km_mean(TIME, SEEN, until=3), 6) == pytest.approx(1 + 5 / 6 + 1 / 2)
    assert at_ones(stats.km_mean([2, 4], [True, True]), 2) == 3


def test_leaving_out_the_censored_makes_the_wait_look_shorter():
    survivors = np.mean([t for t, seen in zip(TIME, SEEN, strict=True) if seen])
    assert survivors < at_ones(stats.km_mean(TIME, SEEN), 6)


def test_a_median_never_reached_has_no_upper_end():
    frame = pd.DataFrame({"problem_id": range(20), "t": [1.0] * 4 + [9.0] * 16, "seen": [True] * 4 + [False] * 16})
    estimate = stats.bootstrap(stats.km_quantile(frame.t, frame.seen), frame.problem_id, unit="s")
    assert estimate.value == np.inf and estimate.hi == np.inf


def test_wilson_by_hand():
    # Wilson 1927 for 8 of 10 at 95 %
    estimate = stats.wilson(8, 10)
    assert (estimate.lo, estimate.hi) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert stats.wilson(0, 10).lo == 0
    assert not stats.wilson(0, 0).known


def mean_of(frame, column, **options):
    return stats.bootstrap(stats.mean(frame[column]), frame.problem_id, **options)


def test_repeats_of_a_problem_do_not_narrow_the_interval():
    rng = np.random.default_rng(1)
    once = pd.DataFrame({"problem_id": range(40), "x": rng.normal(size=40)})
    thrice = pd.concat([once] * 3, ignore_index=True)
    a, b = mean_of(once, "x"), mean_of(thrice, "x")
    assert (a.n, b.n) == (40, 40)
    assert b.value == pytest.approx(a.value)
    assert (b.lo, b.hi) == (pytest.approx(a.lo), pytest.approx(a.hi))


def test_the_bootstrap_is_seeded():
    frame = pd.DataFrame({"problem_id": range(15), "x": np.arange(15.0)})
    assert mean_of(frame, "x", seed=4) == mean_of(frame, "x", seed=4)
    assert mean_of(frame, "x", seed=4) != mean_of(frame, "x", seed=5)


def test_draws_in_chunks_are_the_draws_at_once(monkeypatch):
    frame = pd.DataFrame({"problem_id": np.arange(30) // 2, "x": np.arange(30.0) ** 2})
    whole = mean_of(frame, "x")
    monkeypatch.setattr(stats, "_CELLS_AT_ONCE", 30 * 7)
    assert mean_of(frame, "x") == whole


def test_equal_outcomes_are_not_certainty():
    ones = stats.mean(np.ones(20))
    assert stats.bootstrap(ones, range(20)).lo == 1.0
    sure = stats.bootstrap(ones, range(20), bounds=(0, 1))
    assert (sure.value, sure.hi) == (1.0, 1.0) and sure.lo == pytest.approx(stats.wilson(20, 20).lo)
    once = stats.bootstrap(stats.mean([-1.0] + [0.0] * 19), range(20), bounds=(-1, 1))
    assert once.hi == pytest.approx(stats.wilson(0, 20).hi) and -0.3 < once.lo < -0.05, "none better is not: never any"
    same = stats.bootstrap(stats.mean(np.zeros(20)), range(20), bounds=(-1, 1))
    assert same.hi == -same.lo == pytest.approx(stats.wilson(0, 20).hi)
    mixed = stats.mean([0, 1] * 10)
    assert stats.bootstrap(mixed, range(20), bounds=(0, 1)) == stats.bootstrap(mixed, range(20))


def test_one_cluster_has_a_value_but_no_interval():
    estimate = mean_of(pd.DataFrame({"problem_id": ["a", "a"], "x": [1.0, 3.0]}), "x")
    assert estimate.value == 2 and not estimate.has_interval
    assert not stats.bootstrap(stats.mean([]), pd.Series([], dtype=object)).known


def test_strata_keep_every_set_in_every_draw():
    frame = pd.DataFrame({"problem_id": range(6), "task": list("aaabbb"), "x": [0, 0, 0, 1, 1, 1]})
    within = stats.bootstrap(stats.mean(frame.x), frame.problem_id, strata=frame.task)
    across = stats.bootstrap(stats.mean(frame.x), frame.problem_id)
    assert (within.lo, within.hi) == (0.5, 0.5)
    assert across.lo < 0.5 < across.hi


def test_combinations_of_statistics():
    parts = [stats.mean([1.0, 1, 1, 1]), stats.mean([4.0, 4, 4, 4]), stats.mean([np.nan] * 4)]
    assert stats.average(parts)(ONE)[0] == 2.5
    assert stats.geometric_mean(parts)(ONE)[0] == pytest.approx(2)
    assert stats.largest(parts)(ONE)[0] == 4
    assert stats.smallest(parts)(ONE)[0] == 1
    assert np.isnan(stats.average(parts[2:])(ONE)[0])


def test_by_group_gives_a_row_per_group():
    frame = pd.DataFrame({"task": list("aabb"), "problem_id": [1, 2, 3, 4], "x": [1.0, 3, 5, 5]})
    table = stats.by_group(frame, ["task"], lambda rows: mean_of(rows, "x", unit="s"))
    assert table[["task", "value", "n", "unit"]].values.tolist() == [["a", 2, 2, "s"], ["b", 5, 2, "s"]]


@pytest.mark.parametrize("clusters", [8, 30])
def test_intervals_cover_the_truth_about_as_often_as_they_say(clusters):
    rng = np.random.default_rng(clusters)
    covered = 0
    for trial in range(200):
        problem = np.repeat(np.arange(clusters), 4)
        x = rng.normal(size=clusters)[problem] + 0.5 * rng.normal(size=len(problem))
        estimate = stats.bootstrap(stats.mean(x), problem, n_boot=500, seed=trial)
        covered += estimate.lo <= 0 <= estimate.hi
    # 95 % nominal; 200 trials put about ±4 points of noise on it
    assert 0.89 <= covered / 200 <= 0.995
