"""Arrivals against theory, and the dispatcher on a loop with virtual time."""

import asyncio

import numpy as np
import pytest
from asu import load, paths
from asu.errors import AsuError
from asu.specs import Batch, Closed, Gamma, RunSpec, Trace, parse
from hypothesis import given, settings
from hypothesis import strategies as st

RATES = st.floats(0.01, 1000)
CVS = st.floats(0, 5)
SEEDS = st.integers(0, 2**31)


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose clock jumps to the next timer, and ticks 1 µs a turn so that waiting in turns ends."""

    moment = 0.0

    def time(self) -> float:
        return self.moment

    def _run_once(self) -> None:
        self.moment += 1e-6
        if not self._ready and self._scheduled:
            self.moment = max(self.moment, self._scheduled[0]._when)
        super()._run_once()


class LoopClock:
    def now(self) -> float:
        return asyncio.get_running_loop().time()


def simulate(what, durations, seed=0) -> list[dict]:
    """Dispatch one request per duration [s]; {due, start, end, batch, running (others included) at its start}."""
    rows: list[dict] = [{} for _ in durations]
    running = 0

    async def send(i: int, due_s: float, batch: int) -> None:
        nonlocal running
        running += 1
        rows[i].update(due=due_s, start=LoopClock().now(), batch=batch, running=running)
        await asyncio.sleep(durations[i])
        running -= 1
        rows[i]["end"] = LoopClock().now()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(load.dispatch(what, len(durations), seed, send, LoopClock()))
    return rows


@given(RATES, CVS, SEEDS, st.integers(1, 300))
def test_due_times_are_sorted_and_the_same_for_the_same_seed(rate, cv, seed, n):
    times = load.due_times(Gamma(rate=rate, cv=cv), n, seed)
    assert times.shape == (n,) and (times >= 0).all() and (np.diff(times) >= 0).all()
    assert np.array_equal(times, load.due_times(Gamma(rate=rate, cv=cv), n, seed))


@given(st.floats(0.1, 100), st.floats(0.1, 4), SEEDS)
def test_a_shorter_run_is_the_beginning_of_a_longer_one(rate, cv, seed):
    long = load.due_times(Gamma(rate=rate, cv=cv), 200, seed)
    assert np.array_equal(load.due_times(Gamma(rate=rate, cv=cv), 50, seed), long[:50])


def test_seeds_differ():
    assert not np.array_equal(*(load.due_times(Gamma(rate=1.0, cv=1.0), 10, seed) for seed in (0, 1)))


@pytest.mark.parametrize("cv", [0.25, 0.5, 1.0, 1.41, 3.0])
def test_gaps_have_the_rate_and_cv_asked_for(cv):
    gaps = np.diff(load.due_times(Gamma(rate=4.0, cv=cv), 200_000, 7), prepend=0)
    assert 1 / gaps.mean() == pytest.approx(4, rel=5 * cv / np.sqrt(len(gaps)))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03)
    centred = gaps - gaps.mean()
    assert abs((centred[1:] * centred[:-1]).mean() / gaps.var()) < 5 / np.sqrt(len(gaps))  # a renewal process


@pytest.mark.parametrize("cv", [0.5, 1.0, 2.0])
def test_counts_disperse_as_a_renewal_process(cv):
    times = load.due_times(Gamma(rate=10.0, cv=cv), 400_000, 3)
    window = 20.0  # 200 arrivals: long enough that variance / mean of the counts nears cv²
    counts = np.histogram(times, np.arange(0, times[-1] - window, window))[0]
    # The transient of a renewal count's variance adds (1 + cv⁴)/6-like terms, small beside 200 arrivals a window.
    assert counts.var() / counts.mean() == pytest.approx(cv**2, rel=0.12)


def test_no_variation_means_constant_gaps():
    assert load.due_times(Gamma(rate=2.0, cv=0.0), 4, 0).tolist() == [0.5, 1.0, 1.5, 2.0]


def test_the_realised_rate_is_not_rescaled():
    ends = np.array([load.due_times(Gamma(rate=2.0, cv=1.0), 100, seed)[-1] for seed in range(500)])
    assert ends.mean() == pytest.approx(50, rel=0.03)
    assert ends.std() == pytest.approx(np.sqrt(100) / 2, rel=0.15)  # rescaled arrivals would all end at 50


@pytest.mark.parametrize("bad", [{"rate": -1.0, "cv": 1.0}, {"rate": 0.0, "cv": 1.0}, {"rate": 1.0, "cv": -0.1},
                                 {"rate": float("nan"), "cv": 1.0}])
def test_impossible_rates_are_refused(bad):
    with pytest.raises(AsuError, match="load"):
        parse({"model": "m", "task": "t", "load": {"kind": "gamma", **bad}}, "profile")


def test_loads_that_follow_replies_have_no_due_times():
    assert load.due_times(Batch(size=3), 9, 0) is None and load.due_times(Closed(concurrency=3), 9, 0) is None


@pytest.fixture
def traces(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "TRACES", tmp_path)
    return tmp_path


def test_a_trace_is_replayed_at_its_speed(traces):
    (traces / "site.csv").write_text("# recorded\nt_s,tokens\n0.5,3\n1.0,4\n1.0,5\n9,1\n")
    assert load.due_times(Trace(name="site", speed=2.0), 3, 0).tolist() == [0.25, 0.5, 0.5]


@pytest.mark.parametrize("text, problem", [
    ("t_s\n1\n0.5\n", "not ascending"), ("t_s\n-1\n2\n", "negative"), ("t_s,x\n1,1\n,2\n", "missing"),
    ("t_s\n1\nsoon\n", "no readable column"), ("time\n1\n2\n", "no readable column"), ("", "no readable column"),
    ("t_s\n1\ninf\n", "missing"), ("t_s\n1\n", "holds 1 arrivals, the run has 2")])
def test_a_bad_trace_is_refused(traces, text, problem):
    (traces / "bad.csv").write_text(text)
    with pytest.raises(AsuError, match=problem) as caught:
        load.due_times(Trace(name="bad"), 2, 0)
    assert caught.value.remedy


@pytest.mark.parametrize("name", ["nowhere", "../site", "site.csv"])
def test_an_unknown_trace_names_those_there_are(traces, name):
    (traces / "site.csv").write_text("t_s\n1\n")
    with pytest.raises(AsuError, match="use one of: site;"):
        load.due_times(Trace(name=name), 1, 0)


@given(st.lists(st.floats(0.001, 10), min_size=1, max_size=40), st.integers(1, 12))
def test_a_batch_waits_for_the_slowest_of_the_one_before(durations, size):
    rows = simulate(Batch(size=size), durations)
    for i, row in enumerate(rows):
        assert row["batch"] == i // size
        assert row["due"] == rows[row["batch"] * size]["due"]
        assert row["start"] == pytest.approx(row["due"], abs=1e-4)
        if row["batch"]:
            slowest = max(other["end"] for other in rows if other["batch"] == row["batch"] - 1)
            assert row["due"] >= slowest and row["due"] == pytest.approx(slowest, abs=1e-4)


@given(st.lists(st.floats(0.001, 10), min_size=1, max_size=40), st.integers(1, 12))
def test_a_closed_loop_keeps_its_slots_full_and_never_more(durations, concurrency):
    rows = simulate(Closed(concurrency=concurrency), durations)
    assert max(row["running"] for row in rows) == min(concurrency, len(rows))
    ends = sorted(row["end"] for row in rows)
    starts = [row["start"] for row in rows]
    assert starts == sorted(starts) and {row["batch"] for row in rows} == {-1}
    for k, row in enumerate(rows[concurrency:]):
        assert row["due"] == pytest.approx(ends[k], abs=1e-4)  # the k-th slot to come free is taken at once
        assert row["start"] == pytest.approx(row["due"], abs=1e-4)


@settings(max_examples=50)
@given(st.floats(0.5, 50), st.floats(0, 3), SEEDS, st.integers(1, 40))
def test_an_open_loop_sends_when_due_whatever_the_replies_do(rate, cv, seed, n):
    what = Gamma(rate=rate, cv=cv)
    rows = simulate(what, [1000.0] * n, seed)
    assert [row["due"] for row in rows] == load.due_times(what, n, seed).tolist()
    for row in rows:
        assert 0 <= row["start"] - row["due"] < 1e-3


@pytest.mark.parametrize("what", [Batch(size=2), Closed(concurrency=2), Gamma(rate=100.0, cv=1.0)])
def test_an_error_stops_the_dispatch_and_is_raised_as_it_is(what):
    sent = []

    async def send(i, due_s, batch):
        sent.append(i)
        if i == 3:
            raise AsuError("the engine died", "start it again")
        await asyncio.sleep(0.001)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner, pytest.raises(AsuError, match="the engine died"):
        runner.run(load.dispatch(what, 50, 0, send, LoopClock()))
    assert len(sent) < 50


def test_a_spec_may_hold_every_load():
    for what in ({"kind": "batch", "size": 4}, {"kind": "closed", "concurrency": 4},
                 {"kind": "gamma", "rate": 2.0, "cv": 0.0}, {"kind": "trace", "name": "x"}):
        assert RunSpec(model="m", task="t", load=what).load.kind == what["kind"]
