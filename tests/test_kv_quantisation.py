"""KV-cache quantisation: the paper's numbers of it, bytes per token, error along the text, claims and guidance."""

import pytest
from asu import claims


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
