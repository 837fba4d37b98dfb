"""Rooflines: bytes and arithmetic of a step by hand, bounds from given rates, rates measured once and kept."""

import json

import numpy as np
import pandas as pd
import pytest
from asu import paths, quantise, roofline
from asu.errors import AsuError

CONFIG = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
          "intermediate_size": 16, "vocab_size": 10}
INNER = 2 * (8 * 4 * 6 + 3 * 8 * 16)  # head dimension 4: queries and output of 8, keys and values of 4 each
RATES = roofline.Ceilings("m", 1, {100: 50.0, 10_000: 10.0}, 1000.0)


def test_a_step_reads_every_weight_and_every_token_held():
    work = roofline.step(CONFIG, batch=3, context=7)
    assert work.weight_bytes == 2 * (INNER + 80)
    assert work.kv_bytes == 3 * 7 * 2 * 2 * 1 * 4 * 2
    assert work.flops == 3 * (2 * (INNER + 80) + 4 * 2 * 2 * 4 * 7)


@pytest.mark.parametrize(("scheme", "inner_bytes"),
                         [("w8a8", INNER), ("fp8", INNER), ("w4a16", INNER / 2 + INNER / 64)])
def test_formats_shrink_the_layers_but_not_the_head(scheme, inner_bytes):
    assert roofline.step(CONFIG, batch=1, context=0, weights=scheme).weight_bytes == inner_bytes + 160


def test_kv_formats_shrink_the_cache():
    full, half = (roofline.step(CONFIG, batch=1, context=8, kv_cache=kv).kv_bytes for kv in ("bf16", "fp8_e4m3"))
    assert full == 2 * half


def test_the_bound_is_the_slower_of_both():
    least = roofline.bound(roofline.Step(weight_bytes=60, kv_bytes=40, flops=500), RATES)
    assert (least.memory_s, least.compute_s, least.s) == (100 / 50, 0.5, 2.0)
    assert roofline.bound(roofline.Step(60, 41, 0), RATES).memory_s == 101 / 10, "beyond the cache the memory counts"
    assert RATES.bandwidth_at(1e9) == 10.0


def test_a_miniature_step_reads_what_its_file_holds():
    folder = paths.MODELS / "mini-4m-think"
    by_config = roofline.step(json.loads((folder / "config.json").read_text()), batch=1, context=0).weight_bytes
    assert roofline.stored_bytes(folder) == pytest.approx(by_config, rel=0.01)
    small = folder.with_name("mini-4m-think-w4a16")
    by_config = roofline.step(json.loads((small / "config.json").read_text()), batch=1, context=0, weights="w4a16")
    assert roofline.stored_bytes(small) == pytest.approx(by_config.weight_bytes, rel=0.01)
    assert roofline.stored_bytes(folder.with_name("nothing")) == 0


MACHINE = {"cpu": "Some CPU @ 2 GHz", "cores": 2, "gpus": []}


def test_rates_are_measured_once_and_kept_with_the_machine(tmp_path, monkeypatch):
    measured = roofline.Ceilings("Some CPU @ 2 GHz", 1, {12: 3.0}, 4.0)
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho '{\"cores\": 1, \"bandwidth\": {\"12\": 3.0}, \"matrix\": 4.0}'\n")
    program.chmod(0o755)
    assert roofline.ceilings(MACHINE, tmp_path, str(program), measure=False) is None
    assert roofline.ceilings(MACHINE, tmp_path, str(program)) == measured
    program.unlink()
    assert roofline.ceilings(MACHINE, tmp_path, str(program), measure=False) == measured
    assert (tmp_path / "ceilings-some-cpu-2-ghz-2.json").is_file()


def test_rates_that_cannot_be_measured_are_an_error(tmp_path):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'no torch' >&2\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(AsuError, match="no torch"):
        roofline.ceilings(MACHINE, tmp_path, str(program))


def test_the_measurement_itself(monkeypatch):
    monkeypatch.setattr(roofline, "WORKING_SETS", (1 << 16,))
    monkeypatch.setattr(roofline, "MATRIX", 32)
    monkeypatch.setattr(roofline, "LEAST_S", 1e-4)
    monkeypatch.setattr("os.sched_setaffinity", lambda *_: None)
    found = roofline._measured(1)
    assert found["matrix"] > 0 and found["bandwidth"][1 << 16] > 0


def requests():
    rows = [{"run": weights, "session": 0, "model": "m", "size": "4M", "role": "RLLM", "weights": weights,
             "kv_cache": "bf16", "error": None, "prompt_tokens": 5, "output_tokens": 11, "thinking_tokens": 8,
             "answer_tokens": 3, "due_s": 0.0, "sent_s": 0.0, "first_s": 1.0, "visible_s": 2.0, "last_s": 1.0 + step,
             "end_s": 1.0 + step, "outcome": "correct"} for weights, step in (("bf16", 10.0), ("fp8", 20.0))
            for _ in range(4)]
    return pd.DataFrame(rows)


def test_the_table_sets_the_bound_beside_the_measured_step():
    made = roofline.table(requests(), RATES, {"m": CONFIG}).set_index("weights")
    assert made.step_s.to_dict() == {"bf16": 1.0, "fp8": 2.0} and made.in_flight.tolist() == [4.0, 4.0]
    assert np.allclose(made.share, made.bound_s / made.step_s) and made.over_bf16_s["bf16"] == 0
    assert made.over_bf16_s["fp8"] == pytest.approx(1 + made.bound_s["bf16"] - made.bound_s["fp8"])


def test_without_rates_only_the_measured_step_is_told():
    made = roofline.table(requests(), None, {"m": CONFIG})
    assert made.step_s.notna().all() and made[["bound_s", "share", "over_bf16_s"]].isna().all(axis=None)


def test_every_format_of_the_engine_has_its_bits():
    assert set(quantise.SCHEMES) <= set(roofline.BITS)


def served(pace, weights="bf16", kv_cache="bf16", tasks=("a", "b"), **more):
    """Requests one after the other, `pace` seconds a token, ten tokens each."""
    rows = [{"run": f"{task}-{weights}-{kv_cache}", "model": "m", "size": "1M", "role": "RLLM", "task": task,
             "problem_id": f"{task}{i}", "weights": weights, "kv_cache": kv_cache, "due_s": 10.0 * i,
             "sent_s": 10.0 * i, "first_s": 10.0 * i, "visible_s": 10.0 * i, "last_s": 10.0 * i + 9 * pace,
             "end_s": 10.0 * i + 9 * pace,
             "prompt_tokens": 4, "output_tokens": 10, "thinking_tokens": 0, "answer_tokens": 10, "error": None,
             "outcome": None} for task in tasks for i in range(6)]
    return pd.DataFrame(rows).assign(**more)


def test_a_format_is_predicted_from_the_plain_runs_and_set_beside_what_it_did():
    frame = pd.concat([served(1.0), served(0.75, weights="w8a8", tasks=("a",))], ignore_index=True)
    rates = roofline.Ceilings("m", 1, {10**9: 4000.0}, 1e12)
    row = roofline.predicted(frame, rates, {"m": CONFIG}, arm="weights", n_boot=100).iloc[0]
    base = roofline.table(frame[(frame.weights == "bf16") & (frame.task == "a")], rates, {"m": CONFIG}).iloc[0]
    on, off = (roofline.step(CONFIG, batch=base.in_flight, context=9, weights=name) for name in ("w8a8", "bf16"))
    ratio = (on.weight_bytes + on.kv_bytes) / (off.weight_bytes + off.kv_bytes)
    assert (row.bytes, row.least) == pytest.approx((ratio, ratio))
    assert row.expected == pytest.approx(1 - (1 - ratio) * base.memory_s), "a plain step takes a second"
    assert (row.value, row.lo, row.hi) == pytest.approx((0.75, 0.75, 0.75)) and row.n == 6


def test_formats_of_the_cache_are_predicted_too_and_without_rates_only_their_bytes():
    frame = pd.concat([served(1.0), served(1.1, kv_cache="fp8_e4m3")], ignore_index=True)
    row = roofline.predicted(frame, None, {"m": CONFIG}, arm="kv_cache", n_boot=100).iloc[0]
    assert row.kv_cache == "fp8_e4m3" and 0.5 < row.bytes < 1 and np.isnan(row.least) and np.isnan(row.expected)
    assert row.value == pytest.approx(1.1)
    assert roofline.predicted(frame, None, {}, arm="kv_cache").empty
    assert roofline.predicted(frame[frame.kv_cache == "bf16"], None, {"m": CONFIG}, arm="kv_cache").empty
