"""Shared beginnings of prompts, what a cache can find of them, and the numbers made from runs with and without one."""

import os
import re

import numpy as np
import pandas as pd
import pytest
from asu import claims, plots, runs, specs, workload
from asu.claims import prefix_caching
from asu.errors import AsuError
from asu.stats import Estimate
from asu.study import Study

KINDS = ("unique", "template", "few_shot", "samples", "multi_turn")
REPEATS, TOKENS = 3, 200


def spec(kind, tokens=TOKENS, **changes):
    data = {"model": "mini-4m-direct", "task": "mini-easy", "problems": 4, "repeats": REPEATS,
            "sampling": {"budget": 4}, "prefix": {"kind": kind, "tokens": tokens}} | changes
    return specs.parse(data, "test")


def prompts(kind, **changes):
    return {request.id: request.problem.prompt for request in workload.requests(spec(kind, **changes))}


def common(texts):
    return len(os.path.commonprefix(list(texts)))


# --- the prompts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "multi_turn"])
def test_the_beginning_has_exactly_its_length_and_the_problem_follows(kind):
    plain = {request.problem.id: request.problem.prompt for request in workload.requests(
        specs.parse({"model": "mini-4m-direct", "task": "mini-easy", "problems": 4}, "test"))}
    for name, prompt in prompts(kind).items():
        assert prompt[TOKENS:] == "\n" + plain[name.split("#")[0]]


def test_unique_beginnings_part_early_and_equal_ones_never():
    texts = list(prompts("unique").values())
    assert max(common(pair) for pair in zip(texts, texts[1:], strict=False)) < 32
    assert common(prompts("few_shot").values()) >= TOKENS


def test_a_longer_beginning_holds_the_shorter_one_so_that_a_warm_cache_would_show():
    short, long = prompts("unique"), prompts("unique", prefix={"kind": "unique", "tokens": 4 * TOKENS})
    assert all(common([short[name], long[name]]) >= TOKENS for name in short)


def test_a_template_is_shared_by_all_and_nothing_after_it():
    texts = list(prompts("template").values())
    assert workload.TEMPLATE_TOKENS <= common(texts) < workload.TEMPLATE_TOKENS + 8


def test_samples_share_their_whole_prompt_and_follow_one_another():
    made = workload.requests(spec("samples"))
    assert [request.repeat for request in made] == [0, 1, 2] * 4
    assert all(len({request.problem.prompt for request in made[i:i + 3]}) == 1 for i in range(0, 12, 3))
    assert len({request.problem.prompt for request in made}) == 4 and len({request.seed for request in made}) == 12


def test_each_turn_begins_with_the_turn_before():
    first = [prompt for name, prompt in sorted(prompts("multi_turn").items())][:REPEATS]
    begun = [prompt.split("\n")[0] for prompt in first]
    assert [len(text) for text in begun] == [66, 133, 200]
    assert begun[2].startswith(begun[1]) and begun[1].startswith(begun[0])


def test_prompts_are_the_same_in_every_run_but_for_the_seed():
    assert prompts("unique") == prompts("unique", trial=1) != prompts("unique", seed=1)


def test_random_weights_get_one_word_a_token():
    lengths = "qwen2.5-math-7b-math500-level5"
    made = workload.requests(spec("few_shot", model="qwen2.5-math-7b", task="math500", lengths=lengths,
                                  options={"random_weights": True}, sampling={"budget": 7}))
    assert {len(request.problem.prompt.split("\n")[0].split()) for request in made} == {TOKENS}
    assert {request.max_tokens for request in made} == {7}  # the budget, not the recording


def test_outputs_have_one_fixed_length():
    call = runs._call(spec("unique"), workload.requests(spec("unique"))[0])
    assert call.ignore_eos and call.min_tokens == call.max_tokens == 4


def test_a_prefix_is_part_of_a_runs_identity_and_none_is_not():
    plain = spec("unique").model_copy(update={"prefix": None})
    assert specs.digest(plain, {}) != specs.digest(spec("unique"), {}) != specs.digest(spec("few_shot"), {})
    assert runs.inputs(spec("unique"))["prefix"] == workload.PREFIX_VERSION and "prefix" not in runs.inputs(plain)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "changes", "said"), [
    ("samples", {"repeats": 1}, "set repeats to 2"), ("multi_turn", {"repeats": 1}, "set repeats to 2"),
    ("few_shot", {"prefix": {"kind": "few_shot", "tokens": 4093}}, "leave no room for a problem"),
    ("few_shot", {"prefix": {"kind": "few_shot", "tokens": 0}}, "prefix.tokens"),
    ("few_shot", {"prefix": {"kind": "everything", "tokens": 9}}, "prefix.kind"),
], ids=["samples of one", "one turn", "over the context", "of no tokens", "unknown kind"])
def test_a_prefix_that_cannot_be_is_refused(kind, changes, said):
    with pytest.raises(AsuError, match=said):
        spec(kind, **changes)


def test_a_caching_run_without_its_counterpart_is_refused():
    sweep, _ = frames()
    with pytest.raises(AsuError, match="no run without caching to stand beside"):
        prefix_caching.beside_off(sweep[sweep.prefix_caching | (sweep.prefix != "unique512")])


# --- numbers ----------------------------------------------------------------------------------------------------------

LABELS = {"task": "mini-easy", "load": "closed4", "engine": "vllm", "kv_pool_tokens": 4096, "weights": "bf16",
          "kv_cache": "bf16", "speculation": "none", "max_requests": 8, "batch": -1, "session": 0, "error": None,
          "outcome": None, "finish_reason": "length", "thinking_tokens": 0, "difficulty": 1.0, "level": 1,
          "thinking_text": "", "answer_text": "x"}
TOKEN_US = {"4M": 100.0, "1M": 30.0}  # prefill
LOOK_UP_US = 6.0
FOUND = {"unique": 0.0, "few_shot": 0.8, "multi_turn": 0.4}


def cell(size, caching, kind, tokens, trial=0):
    """One run, one request at a time, whose time is exactly the model of `costs`: requests and gauges."""
    name = f"{size}-{caching}-{kind}{tokens}-{trial}"
    prompt = tokens + 100
    per_token = TOKEN_US[size] * (1 - FOUND[kind] * caching) + LOOK_UP_US * caching
    times = 1e-6 * prompt * per_token * np.ones(12) + 0.01
    last = np.cumsum(times)
    pair = f"mini-{size.lower()}"
    labels = LABELS | {"run": name, "model": f"{pair}-direct", "pair": pair, "size": size, "role": "LLM", "budget": 4,
                       "prefix_caching": caching, "prefix": f"{kind}{tokens}", "trial": trial}
    requests = pd.DataFrame({
        "problem_id": np.repeat([f"p{i}" for i in range(6)], 2), "repeat": np.tile([0, 1], 6), "prompt_tokens": prompt,
        "output_tokens": 4, "answer_tokens": 4, "event_tokens": 4, "due_s": last - times, "sent_s": last - times,
        "first_s": last - 0.005, "visible_s": last - 0.005, "last_s": last, "end_s": last, **labels})
    requests["request_id"] = requests.problem_id + "#" + requests.repeat.astype(str)
    asked = 12.0 * prompt * caching
    engine = pd.DataFrame({"t_s": [0.0, last[-1]], "kv_use": 0.1, "running": 1.0, "waiting": 0.0, "preemptions": 0.0,
                           "prefix_queries": [50.0, 50.0 + asked], "prefix_hits": [7.0, 7.0 + asked * FOUND[kind]],
                           **labels})
    return requests, engine


def frames():
    made = [cell(size, caching, kind, tokens) for size in ("4M", "1M") for kind in FOUND for tokens in (128, 512)
            for caching in (False, True) if caching or kind != "few_shot"]
    made += [cell("4M", caching, "unique", 512, trial=1) for caching in (False, True)]
    return tuple(pd.concat(parts, ignore_index=True) for parts in zip(*made, strict=True))


def test_every_caching_run_stands_beside_one_of_its_lengths():
    pairs = prefix_caching.beside_off(frames()[0])
    sides = pairs.groupby(["size", "prefix", "prefix_caching"]).prompt_tokens.mean().unstack()
    assert (sides[True] == sides[False]).all() and len(sides) == 12 and (pairs.trial == 0).all()
    assert pairs.groupby("run").prefix.nunique().eq(1).all()


def test_hits_are_counted_from_each_runs_own_start():
    found = prefix_caching.hit_shares(*frames()).set_index(["size", "prefix", "trial"]).hit_share
    assert found["4M", "few_shot512", 0] == pytest.approx(0.8) and found["4M", "unique512", 1] == 0
    sweep, engine = frames()
    assert prefix_caching.cold_hit_share(sweep, engine).value == 0
    warm = engine.assign(prefix_hits=engine.prefix_hits.where(
        ~engine.run.str.contains("True-unique512-0") | (engine.t_s == 0), engine.prefix_hits + 128.0))
    assert prefix_caching.cold_hit_share(sweep, warm).value > 0


def test_costs_are_those_the_runs_were_made_with():
    costs = prefix_caching.costs(*frames(), n_boot=50).set_index(["size", "cost"]).value
    for size, prefill in TOKEN_US.items():
        assert costs[size, "prefill"] == pytest.approx(prefill)
        assert costs[size, "saving"] == pytest.approx(prefill)
        assert costs[size, "look_up"] == pytest.approx(LOOK_UP_US)
        assert costs[size, "break_even"] == pytest.approx(LOOK_UP_US / prefill)


def test_numbers_of_the_sweep_and_what_they_say_of_size():
    sweep, gauges = frames()
    assert prefix_caching.look_up_small(sweep, gauges, n_boot=50).value == pytest.approx(LOOK_UP_US)
    assert prefix_caching.unshared_cost(sweep, gauges, n_boot=50).lo > 1
    assert prefix_caching.unshared_cost_again(sweep, n_boot=50).value == pytest.approx(1)
    assert prefix_caching.shared_ttft_ratio(sweep, n_boot=50).hi < 0.7
    assert prefix_caching.size_advantage(sweep, n_boot=50).hi < 1
    assert not prefix_caching.size_advantage(sweep[sweep["size"] == "4M"], n_boot=50).known
    assert not prefix_caching.shared_e2e_ratio_rllm(sweep, n_boot=50).known


def single(ratio, texts=("same", "same")):
    """Single questions of one model on three sets, with caching `ratio` as long."""
    parts = []
    for task in ("mini-easy", "mini-medium", "mini-facts"):
        for caching, text in zip((False, True), texts, strict=True):
            requests, _ = cell("1M", caching, "unique", 128)
            requests["last_s"] = requests.due_s + 0.1 * (ratio if caching else 1.0)
            parts.append(requests.assign(task=task, role="RLLM", prefix="none", run=f"{task}{caching}",
                                         answer_text=text, outcome="correct"))
    return pd.concat(parts, ignore_index=True)


def test_single_questions_are_decided_by_the_runs_made_again():
    again = single(1.0).query("not prefix_caching")
    again = pd.concat([again, again.assign(trial=1, run=again.run + "again", last_s=again.due_s + 0.11)])
    ratio = prefix_caching.e2e_ratio_small(single(1.2), again, n_boot=50)
    assert ratio.value == pytest.approx(1.2) and ratio.lo < 1 < ratio.hi, "one server made again: a tenth is no proof"
    assert prefix_caching.e2e_ratio_again(again, n_boot=50).value == pytest.approx(1.1)
    assert not prefix_caching.e2e_ratio_large(single(1.2), again, n_boot=50).known
    assert prefix_caching.accuracy_change(single(1.2), n_boot=50).value == 0
    assert not prefix_caching.e2e_role_ratio(single(1.2), again, n_boot=50).known


def test_texts_are_compared_where_they_were_kept():
    assert prefix_caching.texts_changed_caching(single(1.0), n_boot=50).value == 0
    assert prefix_caching.texts_changed_caching(single(1.0, ("same", "other")), n_boot=50).value == 1
    assert not prefix_caching.texts_changed_caching(single(1.0, ("", "")), n_boot=50).known


def test_the_papers_figure_shows_caching_slower():
    plotted = next(claim for claim in prefix_caching.CLAIMS if claim.id == "prefix.plotted")
    assert plotted.paper_value == pytest.approx((150 / 147 * 930 / 889 * 309 / 303 * 1065 / 1045) ** 0.25)
    assert all(claim.notebook == "08_prefix_caching" for claim in prefix_caching.CLAIMS)
    assert {claim.number for claim in prefix_caching.CLAIMS} <= set(claims.NUMBERS)


@pytest.mark.parametrize(("numbers", "said"), [
    ({"08.shared_ttft_ratio": Estimate(0.3, 0.2, 0.4), "08.unshared_cost": Estimate(1.05, 1.02, 1.08),
      "08.break_even_share": Estimate(0.06, 0.03, 0.09)}, "more than about 9%.* costs time"),
    ({"08.shared_ttft_ratio": Estimate(0.3, 0.2, 0.4), "08.unshared_cost": Estimate(1.0, 0.9, 1.1),
      "08.break_even_share": Estimate(0.0, -0.3, 2.0)}, "share a beginning.* no certain cost"),
    ({"08.shared_ttft_ratio": Estimate(0.3, 0.2, 0.4), "08.unshared_cost": Estimate(1.0, 0.9, 1.1),
      "08.e2e_ratio_small": Estimate(1.18, 1.15, 1.23), "08.e2e_ratio_llm": Estimate(1.4, 1.2, 1.8)},
     "questions took the smallest reasoning model 1.18 .* and plain models 1.40 .* as long, so leave it off"),
    ({"08.shared_ttft_ratio": Estimate(0.3, 0.2, 0.4), "08.unshared_cost": Estimate(1.0, 0.9, 1.1),
      "08.e2e_ratio_small": Estimate(1.1, 0.9, 1.3)}, "^((?!single questions).)*$"),
    ({"08.shared_ttft_ratio": Estimate(1.1, 0.9, 1.3)}, "no reason to switch"), ({}, "no reason to switch")])
def test_guidance_follows_the_numbers(numbers, said):
    assert re.search(said, prefix_caching.guidance(numbers))


def test_figures_hold_every_cell():
    gains = prefix_caching.gains(*frames(), n_boot=50)
    assert set(gains.metric) == {"ttft", "e2e"} and len(gains) == 24
    assert len(plots.break_even(gains).axes) == 4
    assert len(plots.prompt_costs(prefix_caching.costs(*frames(), n_boot=50)).axes) == len(prefix_caching.COSTS)
    with pytest.raises(AsuError, match="no rows"):
        plots.break_even(gains.iloc[:0])


def test_a_study_takes_prefixes_and_labels_its_frames():
    study = Study(model="mini-4m-direct", task="mini-easy", repeats=2, budget=4, prefix_caching=[False, True],
                  prefix=prefix_caching.cells(["unique", "few_shot"], [64, 128]))
    assert list(study.plan().prefix.unique()) == ["unique64", "unique128", "few_shot64", "few_shot128"]
    assert study.plan().server.nunique() == 2
