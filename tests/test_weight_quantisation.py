"""Numbers, claims, figures and guidance of the notebook on weight quantisation, on made requests."""

import numpy as np
import pandas as pd
import pytest
from asu import claims, drift, plots, roofline
from asu.claims import weight_quantisation as weights
from asu.stats import Estimate

PROMPT = "Compute (1+2)*(3+4)."
RIGHT, WRONG = "3*(3+4)\n3*7\n21", "3*(3+4)\n3*8\n24"


def requests(graded=True, formats=("bf16", "w4a16", "w8a8")) -> pd.DataFrame:
    """20 problems, both roles; w4a16 loses a quarter of the RLLM's answers and is faster, w8a8 changes nothing."""
    rows = []
    for role in ("RLLM", "LLM"):
        for weight, trial in [(name, 0) for name in formats] + [("bf16", 1)]:
            for k in range(20):
                lost = weight == "w4a16" and role == "RLLM" and k % 4 == 0
                pace = 0.5 if weight == "w4a16" else 1.0
                thinks = role == "RLLM"
                rows.append({
                    "run": f"{role}{weight}{trial}", "session": 0, "engine": "vllm", "role": role, "size": "4M",
                    "model": "mini-4m-think" if thinks else "mini-4m-direct", "pair": "mini-4m", "task": "mini-medium",
                    "load": "closed4", "budget": 64, "kv_pool_tokens": 4096, "kv_cache": "bf16", "weights": weight,
                    "prefix_caching": False, "speculation": "none", "max_requests": 8, "trial": trial,
                    "prefix": "none", "problem_id": f"p{k}", "request_id": f"p{k}#0", "repeat": 0, "level": 1 + k % 2,
                    "difficulty": 3.0, "batch": -1, "error": None, "finish_reason": "stop",
                    "outcome": ("wrong" if lost else "correct") if graded else None,
                    "thinking_text": (WRONG if lost else RIGHT) if thinks else "", "answer_text": "21",
                    "prompt_tokens": 20, "thinking_tokens": (15 + 10 * k) if thinks else 0, "answer_tokens": 3,
                    "output_tokens": (18 + 10 * k) if thinks else 3, "due_s": float(k), "sent_s": float(k),
                    "first_s": k + 0.1 * pace, "visible_s": k + 1.5 * pace, "last_s": k + 2.0 * pace,
                    "end_s": k + 2.0 * pace})
    return pd.DataFrame(rows)


@pytest.fixture(autouse=True)
def known_problems(monkeypatch):
    monkeypatch.setattr(drift, "prompts", lambda requests: {f"p{k}": PROMPT for k in range(20)})


def test_numbers_say_what_each_format_changed():
    numbers = claims.measure("06", requests=requests(), n_boot=100)
    assert numbers["06.accuracy_w4a16"].value == pytest.approx(-0.25) and numbers["06.accuracy_w8a8"].value == 0
    assert numbers["06.special_w4a16"].value == pytest.approx(-0.25), "the plain twin lost nothing"
    assert numbers["06.e2e_w4a16"].value == pytest.approx(0.5) and numbers["06.tokens_w4a16"].value == 1
    assert numbers["06.slips_w8a8"].known is False, "no wrong step with bf16: there is nothing to compare with"
    for name in ("06.accuracy_fp8", "06.e2e_awq", "06.e2e_bnb4", "06.accuracy_hard_w4a16"):
        assert not numbers[name].known, "what was not run is not known, and never zero"


def test_every_claim_is_decided_and_missing_formats_leave_theirs_undecided():
    decided = claims.decide(claims.measure("06", requests=requests(), n_boot=100)).set_index("claim")
    mine = decided[decided.notebook == "06_weight_quantisation"]
    assert {claim.id for claim in weights.CLAIMS} == set(mine.index)
    assert mine.verdict["weights.gptq"] == "not supported" and mine.verdict["weights.reasoning"] == "supported"
    for claim in ("weights.awq", "weights.bnb4", "weights.fp8"):
        assert mine.verdict[claim] == "undecided" and "could not be measured" in mine.reason[claim]


def test_random_weights_have_no_accuracy_but_speed():
    ungraded = requests(graded=False)
    numbers = claims.measure("06", requests=ungraded, n_boot=100)
    assert not numbers["06.accuracy_w4a16"].known and not numbers["06.slips_w4a16"].known
    assert not numbers["06.loss_slope_w4a16"].known and numbers["06.e2e_w4a16"].known
    assert weights.levels(ungraded).empty
    first = weights.first_trial(ungraded)
    checked = drift.first_wrong(weights.checkable(first))
    loss = drift.loss_by_length(drift.losses(first, "weights", "bf16"), "weights")
    assert loss.empty and drift.still_right(checked).empty and drift.slips(checked).empty
    figures = [plots.accuracy_by_format(weights.levels(ungraded)), plots.damage_by_length(loss,
                                                                                         drift.still_right(checked))]
    assert all("graded" in figure.texts[0].get_text() for figure in figures)


def test_figures_have_a_line_per_format():
    frame = requests()
    levels = weights.levels(frame, n_boot=50).query("role == 'RLLM'")
    figure = plots.accuracy_by_format(levels)
    assert len(figure.axes[0].lines) == 3 and figure.axes[0].get_title() == "mini-medium"
    first = weights.first_trial(frame)
    loss = drift.loss_by_length(drift.losses(first, "weights", "bf16"), "weights", n_boot=50)
    curves = drift.still_right(drift.first_wrong(weights.checkable(first)))
    assert len(plots.damage_by_length(loss, curves).axes) == 2


@pytest.mark.parametrize("rates", [None, roofline.Ceilings("m", 1, {1 << 30: 1e9}, 1e10)], ids=["unmeasured", "rates"])
def test_steps_are_drawn_with_and_without_rates(rates):
    config = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
              "vocab_size": 10}
    steps = roofline.table(requests().query("trial == 0"), rates, {"mini-4m-think": config, "mini-4m-direct": config})
    left = plots.step_time(steps).axes[0]
    assert len(left.get_yticklabels()) == 6 and len(left.texts) == (0 if rates is None else 6)


@pytest.mark.parametrize("low, high", [(300, 330), (400, 3200), (1, 900_000), (700, 700)])
def test_step_bounds_have_few_labels_however_wide_their_range(low, high):
    steps = pd.DataFrame({"model": "m", "weights": ["bf16", "w4a16"], "memory_s": [high * 1e-6, low * 1e-6],
                          "compute_s": np.nan, "bound_s": high * 1e-6, "step_s": 1.0, "share": 0.1})
    right = plots.step_time(steps).axes[1]
    shown = [t for t in right.get_xticks() if right.get_xlim()[0] <= t <= right.get_xlim()[1]]
    assert 1 <= len(shown) <= 5 and not len(right.xaxis.get_minorticklocs())


def test_guidance_follows_the_numbers():
    fast = {"06.e2e_w4a16": Estimate(0.5, 0.4, 0.6, "×"), "06.accuracy_w4a16": Estimate(0.0, -0.01, 0.01, "share"),
            "06.size_w4a16": {"value": 0.27, "unit": "×"}}
    assert weights.guidance(fast).startswith("Serve GPTQ-Int4 (w4a16) weights: E2E 0.500 [0.400, 0.600] ×")
    assert "0.27 × the bytes" in weights.guidance(fast) and "hard set" not in weights.guidance(fast)
    slow = fast | {"06.e2e_w4a16": Estimate(1.2, 1.1, 1.3, "×"),
                   "06.accuracy_w4a16": Estimate(-0.05, -0.09, -0.01, "share")}
    assert weights.guidance(slow).startswith("Quantise for memory, not for speed")
    assert "check your own hard set" in weights.guidance(slow)
    assert "not graded" in weights.guidance(fast | {"06.accuracy_w4a16": Estimate(np.nan)})
    assert "no ground to choose" in weights.guidance({})
