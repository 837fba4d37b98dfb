"""Extracts of recorded arrivals: made from tiny originals, shipped whole, sent at the rate asked for."""

import json

import numpy as np
import pandas as pd
import pytest
from asu import load, paths, traces
from asu.errors import AsuError
from asu.specs import Trace


@pytest.fixture
def originals(tmp_path):
    """Originals of the published forms: 40 arrivals a second apart, 10 ticks of 4, two clients of 20 and 5 a second."""
    azure, mooncake, servegen = (tmp_path / name for name in ("azure_2023", "mooncake", "servegen_deepseek_r1"))
    for folder in (azure, mooncake, servegen):
        folder.mkdir()
    stamps = pd.date_range("2023-11-16 18:15:46.68", periods=40, freq="1s").strftime("%Y-%m-%d %H:%M:%S.%f0")
    for name in ("conv", "code"):
        pd.DataFrame({"TIMESTAMP": stamps, "ContextTokens": 1, "GeneratedTokens": 2}).to_csv(
            azure / f"AzureLLMInferenceTrace_{name}.csv", index=False)
    rows = [json.dumps({"timestamp": 3000 * (i // 4), "hash_ids": [0]}) for i in range(40)]
    (mooncake / "conversation_trace.jsonl").write_text("\n".join(rows) + "\n")
    # shapes and scales that fit the rates: a Gamma of CV 0.5, a Weibull of shape 1, which is an exponential law
    (servegen / "chunk-0-trace.csv").write_text("0,20,0.5,Gamma,4,0.0125\n600,1,1,Gamma,1,1\n")
    (servegen / "chunk-1-trace.csv").write_text("0,5,1,Weibull,1,0.2\n600,0,0,,0,0\n")
    (servegen / "chunk-2-trace.csv").write_text("0,0,0,,0,0\n600,40,1,Gamma,1,0.025\n")
    return tmp_path


def test_the_middle_of_a_recording_from_zero(originals):
    path = originals / "azure_2023" / "AzureLLMInferenceTrace_conv.csv"
    assert traces.azure(path, 6) == pytest.approx(np.arange(6))
    assert traces.mooncake(originals / "mooncake" / "conversation_trace.jsonl", 8).tolist() == [0.0] * 4 + [3.0] * 4


def test_arrivals_drawn_from_published_parameters_have_their_rate(originals):
    times = traces.servegen(originals / "servegen_deepseek_r1", 10_000)  # window 0: 25/s, the nearer to the mean of 33
    assert len(times) == 10_000 and times[0] == 0 and (np.diff(times) >= 0).all()
    assert 9_999 / times[-1] == pytest.approx(25, rel=0.03)
    again = traces.servegen(originals / "servegen_deepseek_r1", 10_000)
    other = traces.servegen(originals / "servegen_deepseek_r1", 10_000, seed=1)
    assert np.array_equal(times, again) and not np.array_equal(times, other)


def test_no_client_starts_with_a_whole_gap():
    """Gaps of a Gamma law of CV 0.5 and mean 8 s, 75 of them before the window: what is left of one at its start."""
    client = pd.Series({"law": "Gamma", "shape": 4.0, "scale": 2.0})
    first = [traces._renewal(client, np.random.default_rng(seed))[0] for seed in range(400)]
    assert np.mean(first) == pytest.approx(8 * (1 + 0.25) / 2, rel=0.12)  # the mean residual life, E[gap²] / 2 E[gap]


def test_building_writes_what_load_reads(originals, monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "TRACES", tmp_path / "traces")
    short = {name: (where, lambda path, read=read: read(path, 30), what)
             for name, (where, read, what) in traces.SOURCES.items()}
    monkeypatch.setattr(traces, "SOURCES", short)
    written = traces.build(originals)
    assert [path.stem for path in written] == list(traces.SOURCES)
    for path in written:
        assert path.read_text().startswith("# ") and len(load.trace_times(Trace(name=path.stem), 30)) == 30


def test_originals_that_lack_something_are_refused_before_anything_is_written(originals, tmp_path):
    with pytest.raises(AsuError, match="fewer than 3000"):
        traces.azure(originals / "azure_2023" / "AzureLLMInferenceTrace_conv.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AsuError, match="holds no .-trace.csv"):
        traces.servegen(tmp_path / "empty")
    (originals / "mooncake" / "conversation_trace.jsonl").unlink()
    with pytest.raises(AsuError, match="holds no mooncake/conversation_trace.jsonl") as caught:
        traces.build(originals, tmp_path / "out")
    assert caught.value.remedy and not (tmp_path / "out").exists()


def test_a_law_nobody_knows_is_refused():
    with pytest.raises(AsuError, match="'Pareto'"):
        traces._renewal(pd.Series({"law": "Pareto", "shape": 1.0, "scale": 1.0}), np.random.default_rng(0))


@pytest.mark.parametrize("name", traces.SOURCES)
def test_shipped_extracts_are_whole_small_and_say_what_they_are(name):
    path = load.trace_path(name)
    times = load.trace_times(Trace(name=name), traces.ARRIVALS)
    assert times[0] == 0 and path.stat().st_size < 75_000
    first = path.read_text().splitlines()[0]
    assert first == f"# {traces.SOURCES[name][2]}"
    assert ("drawn" in first) == ("drawn" in name) and "recorded" in first
    assert path.name in (paths.TRACES / "README.md").read_text()


@pytest.mark.parametrize("name, low, high", [
    ("azure-conversation", 0.9, 1.2), ("azure-code", 5, 15), ("mooncake-conversation", 2.5, 3.5),
    ("deepseek-r1-drawn", 1.0, 1.3)])
def test_shipped_extracts_are_as_bursty_as_their_originals(name, low, high):
    gaps = np.diff(load.trace_times(Trace(name=name), traces.ARRIVALS))
    assert low < gaps.std() / gaps.mean() < high


@pytest.mark.parametrize("rate", [0.013, 5.0, 200.0])
def test_a_trace_is_sent_at_the_rate_asked_for_however_low(rate):
    what = traces.at_rate(["azure-conversation"], 50, rate)[0]
    times = load.due_times(Trace(**what), 50, 0)
    assert 49 / (times[-1] - times[0]) == pytest.approx(rate)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_no_trace_is_sent_at_a_rate_that_is_none(rate):
    with pytest.raises(AsuError, match="rate of"):
        traces.speed("azure-conversation", 50, rate)


@pytest.mark.parametrize("n", [1, 3])
def test_arrivals_that_span_no_time_have_no_rate(tmp_path, monkeypatch, n):
    monkeypatch.setattr(paths, "TRACES", tmp_path)
    (tmp_path / "tick.csv").write_text("t_s\n0\n0\n0\n")
    with pytest.raises(AsuError, match="span no time"):
        traces.mean_rate("tick", n)
