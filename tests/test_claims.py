"""The claims: numbers from synthetic studies whose truth is known, and verdicts that can go either way."""

import numpy as np
import pandas as pd
import pytest
from asu import claims, metrics, profiles, tasks
from asu.errors import AsuError
from asu.stats import Estimate

TASKS = ("mini-easy", "mini-medium", "mini-facts")
FEW = {"n_boot": 200}


def study(seconds, *, roles=("RLLM", "LLM"), tasks=TASKS, load="batch8", budget=2048, problems=32, hit=None, noise=0.1,
          max_requests=64, pair="mini-4m"):
    """A requests frame: `seconds(role, task, difficulty 1..4)` is a request's mean time, 100 tokens a second.

    hit(role, task, problem index) -> bool. Barrier loads start a batch when the one before is done; closed loads
    refill a slot at once.
    """
    rows = []
    for role in roles:
        for task in tasks:
            run = f"{pair}-{role}-{task}-{load}-{budget}-{max_requests}"
            rng = np.random.default_rng(list(f"{role}{task}".encode()))
            size = metrics.load_size(pd.Series([load]))[0]
            slots = np.zeros(int(size))
            for i in range(problems):
                difficulty = float(i % 4 + 1)
                if load.startswith("batch") and i % len(slots) == 0:
                    slots[:] = slots.max()
                slot = slots.argmin() if load.startswith("closed") else i % len(slots)
                due, spent = slots[slot], seconds(role, task, difficulty) * float(np.exp(noise * rng.normal()))
                slots[slot] = due + spent
                correct = True if hit is None else hit(role, task, i)
                tokens = max(1, round(100 * spent))
                rows.append({
                    "run": run, "session": 0, "engine": "vllm", "pair": pair,
                    "model": f"{pair}-{'think' if role == 'RLLM' else 'direct'}", "size": "4M", "role": role,
                    "task": task, "load": load, "budget": budget, "kv_pool_tokens": pd.NA, "kv_pool_actual": 4096,
                    "max_requests": max_requests, "speculation": "none",
                    "request_id": f"{task}-{i}#0", "problem_id": f"{task}-{i}", "difficulty": difficulty,
                    "batch": i // len(slots) if load.startswith("batch") else -1,
                    "due_s": due, "sent_s": due, "first_s": due + 0.01 * spent, "visible_s": due + 0.8 * spent,
                    "last_s": due + spent, "end_s": due + spent, "prompt_tokens": 20, "output_tokens": tokens,
                    "thinking_tokens": tokens - 1, "answer_tokens": 1, "event_tokens": tokens,
                    "finish_reason": "stop", "error": None, "outcome": "correct" if correct else "wrong",
                    "thinking_text": f"{task}{i}", "answer_text": "7",
                })
    return pd.DataFrame(rows)


def adaptive(role, task, difficulty):
    """The RLLM's time doubles with each step of difficulty and is longer on medium; the LLM's is always the same."""
    return 2.0**difficulty * (4 if task == "mini-medium" else 1) if role == "RLLM" else 1.0


def gauges(level, *, runs=(("RLLM", "mini-easy"), ("LLM", "mini-easy"), ("RLLM", "mini-hard"), ("LLM", "mini-hard"))):
    """An engine frame: KV use climbs from 0 to level(role, task) and falls again, every 0.2 s for 40 s, four times."""
    t = np.arange(0, 40, 0.2)
    wave = (1 - np.cos(t * 2 * np.pi / 10)) / 2
    return pd.concat([pd.DataFrame({
        "run": f"{role}-{task}", "session": 0, "engine": "vllm", "pair": "mini-4m", "role": role, "task": task,
        "load": "closed32", "kv_pool_tokens": pd.NA, "t_s": t, "kv_use": level(role, task) * wave, "running": 8.0,
        "waiting": 0.0}) for role, task in runs], ignore_index=True)


def contains(estimate, value):
    return estimate.lo - 1e-9 <= value <= estimate.hi + 1e-9


# --- the paper's numbers -------------------------------------------------------------------------------------------


def test_the_papers_numbers_as_digitised():
    assert claims.paper("kv_peak", size="7B", role="RLLM").value.tolist() == [0.021, 0.041, 0.127, 0.187]
    assert len(claims.paper("accuracy_by_budget")) == 2 * 4 * 8
    row = claims.paper("accuracy_by_budget", size="14B", set="AIME-2024", budget=20480)
    assert row.value.tolist() == [0.70]
    assert claims.paper("running_time", role="LLM").value.tolist() == pytest.approx([64.2, 82.8, 30, 132.6])
    assert claims.PAPER.source.str.len().min() > 0
    with pytest.raises(AsuError, match="no number called 'speed'"):
        claims.paper("speed")


def test_the_papers_numbers_are_joined_to_the_tasks_measured():
    rows = claims.paper("accuracy", tasks=["mini-hard", "aime24", "puzzles"], role="RLLM")
    assert rows[["task", "value"]].values.tolist() == [["mini-hard", 0.367], ["aime24", 0.367]]
    left = claims.paper("running_requests", tasks=["mini-medium"], role="RLLM")
    assert left[["t_s", "value"]].values.tolist() == [[0, 16], [50, 4], [80, 2], [200, 2]]


def test_what_the_papers_own_numbers_come_to():
    by_id = {claim.id: claim for claim in claims.CLAIMS}
    assert by_id["F1.heavy"].paper_value == pytest.approx((1.75 * 2.05 * 12.7 / 3.7 * 18.7 / 2.3) ** 0.25)
    assert by_id["F3.spread"].paper_value == pytest.approx((24.3 / 1.47) / (2.21 / 1.07))
    assert by_id["F4.mathematics"].paper_value == pytest.approx((0.08 + 0.63 + 0.234) / 3)
    assert by_id["budget.suffices"].paper_value == pytest.approx(0.11)


def test_a_number_by_task_stands_beside_the_papers():
    theirs = claims.paper_ratio("kv_peak", ["mini-hard"], size="7B")
    assert theirs.to_dict() == {"mini-hard": pytest.approx(12.7 / 3.7)}
    numbers = {"01.kv_peak_ratio": Estimate(9.0), "01.kv_peak_ratio_mini-hard": Estimate(12.7),
               "01.kv_peak_ratio_mini-easy": Estimate(2.0), "01.kv_peak_rllm_mini-hard": Estimate(1.0)}
    table = claims.beside_paper("01.kv_peak_ratio", numbers, theirs).set_index("task")
    assert list(table.index) == ["mini-easy", "mini-hard"]
    assert table.loc["mini-hard", "measured over paper"] == pytest.approx(3.7)
    assert np.isnan(table.loc["mini-easy", "paper"])


# --- the numbers ---------------------------------------------------------------------------------------------------


def test_kv_ratios_are_geometric_means_over_sets():
    engine = gauges(lambda role, task: {"mini-easy": 0.2, "mini-hard": 0.8}[task] if role == "RLLM" else 0.1)
    peak = claims.kv_cache.kv_ratio(engine, "peak", **FEW)
    assert peak.value == pytest.approx(4) and contains(peak, 4)
    assert claims.kv_cache.kv_ratio(engine, "mean", **FEW).value == pytest.approx(4)
    assert claims.kv_cache.kv_ratio(engine, "swing", **FEW).value == pytest.approx(4)
    assert claims.kv_cache.kv_peak_rllm(engine, **FEW).value == pytest.approx(0.8)
    assert claims.kv_cache.kv_range_llm(engine, **FEW).value == pytest.approx(0.1)
    numbers = claims.measure("01", engine=engine, held=engine, **on_the_wire(), **FEW)
    assert numbers["01.kv_peak_ratio_mini-easy"].value == pytest.approx(2)
    assert numbers["01.kv_peak_ratio_mini-hard"].value == pytest.approx(8)
    assert "01.kv_prediction_error_mini-hard" not in numbers


def test_a_run_that_was_over_before_its_gauge_was_read_has_no_ratio():
    engine = gauges(lambda role, task: 0.8 if role == "RLLM" else 0.1)
    missed = (engine.role == "LLM") & (engine.task == "mini-easy")
    engine.loc[missed, "running"] = 0.0
    assert claims.kv_cache.kv_ratio(engine, "peak", **FEW).value == pytest.approx(8)  # of the set that was seen
    assert not claims.kv_cache.kv_ratio(engine[engine.task == "mini-easy"], "peak", **FEW).known


def on_the_wire():
    """One request per run that holds 20 + 76 tokens of a pool of 96·8 from 10 s on, so that 1/8 is predicted."""
    labels = [(f"{role}-{task}", role, task) for task in ("mini-easy", "mini-hard") for role in ("RLLM", "LLM")]
    requests = pd.DataFrame([{"run": run, "session": 0, "role": role, "task": task, "request_id": "a#0",
                              "prompt_tokens": 20, "sent_s": 9.0, "server_queue_s": 1.0, "last_s": 50.0, "end_s": 50.0,
                              "kv_pool_actual": 768}
                             for run, role, task in labels])
    events = pd.DataFrame([{"run": run, "session": 0, "request_id": "a#0", "t_s": 10.0, "thinking_tokens": 76,
                            "answer_tokens": 0} for run, _, _ in labels])
    return {"requests": requests, "events": events}


def test_prediction_error_by_hand():
    engine = gauges(lambda role, task: 0.0).assign(kv_use=0.25)
    error = claims.kv_cache.kv_prediction_error(engine, **on_the_wire(), **FEW)
    # 10 of 39.8 s at 0.25 too low, the rest at 0.125 too low
    assert error.value == pytest.approx((10 * 0.25 + 29.8 * 0.125) / 39.8, abs=0.002)


def test_the_client_s_own_view_is_an_engine_frame():
    seen = metrics.predicted_engine(**on_the_wire())
    assert set(seen.role) == {"RLLM", "LLM"} and seen.kv_use.max() == 1 / 8
    assert seen.groupby("run").running.last().eq(0).all()  # all is let go at the end
    assert claims.kv_cache.kv_ratio(seen, "peak", **FEW).value == 1


def test_a_comparison_needs_both_roles_under_equal_settings():
    engine = gauges(lambda role, task: 0.5)
    with pytest.raises(AsuError, match="nothing to compare"):
        claims.kv_cache.kv_ratio(engine[engine.role == "RLLM"], "peak")
    with pytest.raises(AsuError, match="nothing to compare"):
        claims.kv_cache.kv_ratio(engine.assign(load=engine.role), "peak")
    requests = study(adaptive)
    with pytest.raises(AsuError, match="different problems"):
        lost = (requests.role == "LLM") & (requests.problem_id == "mini-easy-3")
        claims.domain.accuracy_difference(requests[~lost])


def test_straggler_share_by_hand():
    # seven of a batch of eight take 1 s, one takes 5 s: under 20 % of eight means at most one, for 4 of 5 s
    requests = study(lambda role, task, d: 1.0, noise=0.0)
    slow = (requests.role == "RLLM") & (requests.problem_id.str.extract(r"-(\d+)$")[0].astype(int) % 8 == 0)
    for role, wall in (("RLLM", 5.0), ("LLM", 1.0)):
        rows = requests.role == role
        for column in ("due_s", "sent_s"):
            requests.loc[rows, column] = requests.batch[rows] * wall
        requests.loc[rows, "last_s"] = requests.due_s[rows] + 1.0
    requests.loc[slow, "last_s"] = requests.due_s[slow] + 5.0
    numbers = claims.measure("02", requests=pd.concat([requests, study(adaptive, load="closed8")]), **FEW)
    assert numbers["02.straggler_share_rllm"].value == pytest.approx(0.8)
    assert numbers["02.straggler_share_llm"].value == 0
    assert numbers["02.straggler_share_difference_mini-easy"].value == pytest.approx(0.8)
    assert numbers["02.makespan_ratio_rllm"].value == pytest.approx(8 * 5 / 12)
    assert numbers["02.makespan_ratio_llm"].value == pytest.approx(1)


def test_the_barrier_costs_time_that_continuous_batching_does_not():
    both = pd.concat([study(adaptive, load=load, problems=64) for load in ("batch8", "closed8")], ignore_index=True)
    cost = claims.stragglers.barrier_cost_rllm(both, **FEW)
    assert cost.value > 1.3 and contains(cost, cost.value)
    kept = claims.stragglers.straggler_share_kept_rllm(both, **FEW)
    assert 0 <= kept.value < 1


def test_times_that_follow_difficulty_and_times_that_do_not():
    numbers = claims.measure("03", requests=study(adaptive), **FEW)
    assert numbers["03.time_spearman_rllm"].lo > 0.9
    assert abs(numbers["03.time_spearman_llm"].value) < 0.3
    # ln 2 per step, and difficulty 1..4 has a standard deviation of √1.25 steps
    assert numbers["03.time_slope_rllm"].value == pytest.approx(np.log(2) * np.sqrt(1.25), abs=0.05)
    assert numbers["03.tokens_slope_rllm"].value == pytest.approx(np.log(2) * np.sqrt(1.25), abs=0.05)
    assert contains(numbers["03.time_slope_difference"],
                    numbers["03.time_slope_rllm"].value - numbers["03.time_slope_llm"].value)
    assert numbers["03.time_spread_ratio"].value == pytest.approx(4, rel=0.15)
    # on medium 4 times as long: 2, 4, 8 and 16 against 1 is 7.5 on average, four times that on medium
    assert numbers["03.time_ratio"].value == pytest.approx(7.5 * 4 ** (1 / len(TASKS)), rel=0.15)
    assert "03.time_slope_rllm_mini-medium" in numbers and "03.time_spread_ratio_mini-easy" not in numbers


def test_what_stands_beside_the_papers_is_wall_time_and_not_the_mean_request():
    requests = study(adaptive, load="closed8")
    tail = (requests.role == "LLM") & (requests.request_id == "mini-easy-31#0")
    requests.loc[tail, ["last_s", "end_s"]] += 100.0  # one plain request keeps its whole set waiting
    numbers = claims.measure("03", requests=requests, **FEW)
    spans = requests.groupby(["role", "task"]).agg(first=("sent_s", "min"), last=("last_s", "max"))
    wall = (spans["last"] - spans["first"]).unstack("task")
    each = wall.loc["RLLM"] / wall.loc["LLM"]
    assert numbers["03.wall_ratio_mini-easy"].value == pytest.approx(each["mini-easy"])
    assert numbers["03.wall_ratio"].value == pytest.approx(np.exp(np.log(each).mean()))
    assert numbers["03.wall_ratio_mini-easy"].value < 0.5 < 1.5 < numbers["03.time_ratio_mini-easy"].value
    spread = wall.max(axis=1) / wall.min(axis=1)
    assert numbers["03.wall_spread_ratio"].value == pytest.approx(spread["RLLM"] / spread["LLM"])
    row = claims.decide(numbers).set_index("claim").loc["F3.spread"]
    assert row.value == numbers["03.time_spread_ratio"].value  # decides as before
    assert row.ratio_to_paper == pytest.approx(numbers["03.wall_spread_ratio"].value / row.paper_value)


def test_a_set_of_one_difficulty_has_no_slope_and_does_not_spoil_the_others():
    requests = study(adaptive)
    requests.loc[requests.task == "mini-facts", "difficulty"] = 1.0
    numbers = claims.measure("03", requests=requests, **FEW)
    assert not numbers["03.time_slope_rllm_mini-facts"].known
    assert numbers["03.time_slope_rllm"].has_interval


def test_accuracy_leads_by_domain():
    # RLLM right on all; LLM right on one in four mathematics problems and on all facts
    requests = study(adaptive, hit=lambda role, task, i: role == "RLLM" or task == "mini-facts" or i % 4 == 0)
    numbers = claims.measure("04", requests=requests, **FEW)
    assert numbers["04.accuracy_difference_mathematics"].value == pytest.approx(0.75)
    assert numbers["04.accuracy_difference_knowledge"].value == 0
    assert numbers["04.domain_gap"].value == pytest.approx(0.75)
    assert numbers["04.accuracy_difference_mini-easy"].value == pytest.approx(0.75)
    assert numbers["04.accuracy_difference"].value == pytest.approx(0.5)
    with pytest.raises(AsuError, match="unknown task 'puzzles'"):
        claims.domain.domain_gap(requests.assign(task="puzzles"))


@pytest.mark.parametrize("profile", [name for name in profiles.names()
                                     if claims.NOTEBOOKS["04"] in profiles.load(name).notebooks])
def test_every_profile_s_sets_are_mathematics_or_knowledge(profile):
    book = claims.NOTEBOOKS["04"]
    sets = profiles.load(profile).parameters(book).get("TASKS", profiles.parameters(book)["TASKS"])
    requests = study(adaptive, tasks=sets, problems=8, hit=lambda role, task, i: role == "RLLM" or i % 4 == 0)
    numbers = claims.measure("04", requests=requests, n_boot=20)
    kinds = {tasks.get(name).kind for name in sets}
    for kind in ("mathematics", "knowledge"):
        lead = numbers[f"04.accuracy_difference_{kind}"]
        assert lead.value == 0.75 if kind in kinds else not lead.known
    assert numbers["04.domain_gap"].known == (len(kinds) == 2)


def test_failed_requests_are_no_wrong_answers_and_ungraded_ones_no_zero():
    requests = study(adaptive)
    requests.loc[requests.role == "RLLM", "outcome"] = ["failed", "correct"] * 48
    assert claims.domain.accuracy_difference(requests, **FEW).value == 0
    # the RLLM times out on the half that neither can do: alone, its other half would be a lead of one half
    requests = study(adaptive, hit=lambda role, task, i: i % 2 == 0)
    requests.loc[(requests.role == "RLLM") & (requests.outcome == "wrong"), "outcome"] = "failed"
    assert claims.domain.accuracy_difference(requests, **FEW).value == 0
    assert claims.domain.domain_gap(requests, **FEW).value == 0
    numbers = claims.measure("04", requests=requests.assign(outcome=None), **FEW)
    assert not any(estimate.known for estimate in numbers.values())


def test_budget_gains_from_half_to_largest():
    # at 512 tokens every second medium problem is still unsolved; at 1024 and 2048 all are solved
    def at(budget):
        return study(adaptive, budget=budget, hit=lambda _, task, i: budget > 512 or task != "mini-medium" or i % 2)

    def sweep(last):
        return pd.concat([at(256), at(512), at(last)], ignore_index=True)

    gain = claims.budget_batch.budget_gain_largest(sweep(1024), **FEW)
    assert gain.value == pytest.approx(0.5) and gain.lo > 0.2
    assert claims.budget_batch.budget_gain(sweep(1024), **FEW).value == pytest.approx(0.5 / 3)
    assert claims.budget_batch.budget_gain(pd.concat([sweep(1024), study(adaptive)]), **FEW).value == 0
    assert not claims.budget_batch.budget_gain(study(adaptive)).known, "one budget tells nothing"
    with pytest.raises(AsuError, match="factor of two"):
        claims.budget_batch.budget_gain(pd.concat([at(1500), study(adaptive)]))


@pytest.fixture(scope="module")
def sizes():
    """Batch sizes 4 and 16: requests slow down by half while four times as many run, nothing else changes."""
    small = study(adaptive, load="closed4", max_requests=4, roles=("RLLM",), problems=64)
    large = study(lambda *of: 1.5 * adaptive(*of), load="closed16", max_requests=16, roles=("RLLM",), problems=64)
    return pd.concat([small, large], ignore_index=True)


def test_batch_size_effects(sizes):
    numbers = claims.measure("05", requests=pd.concat([study(adaptive, budget=b) for b in (1024, 2048)]), batches=sizes,
                             control=sizes, **FEW)
    assert 1.5 / 4 < numbers["05.batch_time_ratio"].value < 0.7
    assert numbers["05.batch_tps_ratio"].value > 1.5
    # the drain at the end of a run makes the ratio differ from 1.5 only through rows beyond the common time
    assert numbers["05.batch_ttfvt_ratio"].value == pytest.approx(1.5, rel=0.15)
    each = [numbers[f"05.batch_ttfvt_ratio_{task}"].value for task in TASKS]
    assert numbers["05.batch_ttfvt_ratio"].value == pytest.approx(np.exp(np.mean(np.log(each))))
    assert numbers["05.batch_accuracy_change"].value == 0
    assert numbers["05.batch_texts_changed"].value == 0
    assert numbers["05.cut_off_share"].value == 0


def test_texts_that_change_with_batch_size_are_counted(sizes):
    changed = (sizes.load == "closed16") & (sizes.problem_id.str.endswith("-3"))
    texts = claims.budget_batch.batch_texts_changed(sizes.assign(answer_text=np.where(changed, "8", "7")), **FEW)
    assert texts.value == pytest.approx(1 / 64)


def test_load_sizes_come_from_labels():
    sizes = metrics.load_size(pd.Series(["batch16", "closed8", "gamma2cv1.41", "trace-x1"]))
    assert sizes[:2].tolist() == [16, 8] and sizes[2:].isna().all()


def test_measure_names_the_frames_it_needs():
    with pytest.raises(AsuError, match=r"\['batches', 'control', 'requests'\]"):
        claims.measure("05", requests=pd.DataFrame())
    with pytest.raises(AsuError):
        claims.measure("09", requests=pd.DataFrame())


# --- the verdicts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where, measured, verdict", [
    (claims.Range(lo=1.5), Estimate(2, 1.6, 3), "supported"),
    (claims.Range(lo=1.5), Estimate(2, 1.4, 3), "undecided"),
    (claims.Range(lo=1.5), Estimate(1.2, 1.1, 1.5), "not supported"),
    (claims.Range(lo=1.5), Estimate(2, 1.6, np.inf), "supported"),
    (claims.Range(hi=1), Estimate(0.5, 0.4, 0.9), "supported"),
    (claims.Range(hi=1), Estimate(1.5, 1.0, 1.9), "not supported"),
    (claims.Range(-0.1, 0.1), Estimate(0, -0.05, 0.05), "supported"),
    (claims.Range(-0.1, 0.1), Estimate(0, -0.15, 0.05), "undecided"),
    (claims.Range(-0.1, 0.1), Estimate(-0.3, -0.4, -0.2), "not supported"),
    (claims.Range(lo=0), Estimate(5), "undecided"),
    (claims.Range(lo=0), Estimate(np.nan, 1, 2), "undecided"),
])
def test_only_a_whole_interval_decides(where, measured, verdict):
    assert where.verdict(measured)[0] == verdict
    assert where.verdict(measured)[1]


def test_every_claim_can_be_supported_and_can_fail():
    for claim in claims.CLAIMS:
        bound, middle = claim.holds.threshold, (claim.holds.lo + claim.holds.hi) / 2
        inside = {"<": bound - 1, ">": bound + 1, "within": middle}[claim.holds.direction]
        outside = {"<": bound + 1, ">": bound - 1, "within": 2}[claim.holds.direction]
        for centre, verdict in ((inside, "supported"), (outside, "not supported")):
            table = claims.decide({claim.number: Estimate(centre, centre - 0.01, centre + 0.01)}).set_index("claim")
            assert table.verdict[claim.id] == verdict, claim.id


def test_every_claim_reads_a_number_that_some_notebook_records():
    for claim in claims.CLAIMS:
        for name in filter(None, (claim.number, claim.compared)):
            assert name in claims.NUMBERS
        holds = claim.holds
        assert np.isinf(holds.lo) or np.isinf(holds.hi) or holds.lo in (-holds.hi, 1 / holds.hi)
    assert len({claim.id for claim in claims.CLAIMS}) == len(claims.CLAIMS)


def test_the_table_of_verdicts():
    table = claims.decide({"01.kv_peak_ratio": {"value": 6.326406, "lo": 5.0, "hi": 7.0, "unit": "×"},
                           "01.kv_swing_ratio": Estimate(3, 2, 4, "×"),
                           "01.kv_range_rllm": Estimate(0.335, 0.3, 0.335)}).set_index("claim")
    assert len(table) == len(claims.CLAIMS)
    heavy, swing, follows = table.loc["F1.heavy"], table.loc["F1.swing"], table.loc["F3.follows"]
    assert heavy.verdict == "supported" and heavy.measured == "6.33 [5.00, 7.00] ×"
    assert heavy.ratio_to_paper == pytest.approx(2, rel=1e-3)
    assert np.isnan(swing.ratio_to_paper)  # shares differ by so much: a range of 0.335 beside the paper's 0.67
    assert swing.minus_paper == pytest.approx(-0.335) and np.isnan(heavy.minus_paper)
    assert heavy.excludes_paper and swing.excludes_paper and not follows.excludes_paper
    assert follows.verdict == "undecided" and "03_adaptive_running_time" in follows.reason
    assert np.isnan(follows.ratio_to_paper)


def test_a_number_disagrees_with_the_papers_only_where_its_interval_leaves_that_out():
    for measured, apart in ((Estimate(0.0, -0.25, 0.25), False), (Estimate(0.0, -0.15, 0.15), True),
                            (Estimate(-0.4, -0.5, -0.3), True), (Estimate(0.0), False)):
        row = claims.decide({"06.accuracy_hard_w4a16": measured}).set_index("claim").loc["weights.gptq_hard"]
        assert row.excludes_paper == apart, "the paper's is -0.20"
        assert row.minus_paper == pytest.approx(measured.value + 0.2) and np.isnan(row.ratio_to_paper)


def test_bounds_are_told_in_three_digits():
    assert claims.Range(hi=1 / 1.5).verdict(Estimate(0.5, 0.4, 0.6))[1] == "the whole interval lies below 0.667"
    assert str(claims.Range(-0.03, 0.03)) == "between -0.03 and 0.03"


def test_a_study_that_behaves_as_the_paper_says_and_one_that_does_not():
    engine = gauges(lambda role, task: 0.7 if role == "RLLM" else 0.03)
    flat = gauges(lambda role, task: 0.3)
    for frame, verdict in ((engine, "supported"), (flat, "not supported")):
        table = claims.decide(claims.measure("01", engine=frame, held=frame, **on_the_wire(), **FEW)).set_index("claim")
        assert table.verdict[["F1.heavy", "F1.swing"]].tolist() == [verdict] * 2
    for seconds, verdict in ((adaptive, "supported"), (lambda *_: 1.0, "not supported")):
        table = claims.decide(claims.measure("03", requests=study(seconds, problems=64), **FEW)).set_index("claim")
        assert table.verdict[["F3.follows", "F3.spread"]].tolist() == [verdict] * 2
