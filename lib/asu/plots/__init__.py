"""Every figure of the study: one function each, tidy frames in, a matplotlib Figure out.

Frames carry the columns of `Study` (task, pair, role, load, budget, ...). A summary frame is tidy: one row per
`metric`, with `value`, `lo` and `hi`. `paper` frames hold the paper's numbers: rows of `claims.paper`, or the same
columns as the measured frame, without an interval.
"""

from asu.plots.effects import effects
from asu.plots.honesty import flawed_claims, flaws
from asu.plots.kv_quantisation import error_growth
from asu.plots.pilot import (
    PAPER_RUNNING,
    accuracy_by_level,
    agreement,
    batch_size,
    budget_curve,
    claims_picture,
    domain_preference,
    kv_summary,
    kv_use_over_time,
    length_by_outcome,
    load_label,
    outcomes,
    queue_over_time,
    running_over_time,
    straggler_summary,
    survivor,
    swimlane,
    time_vs_difficulty,
)
from asu.plots.prefix_caching import break_even, prompt_costs
from asu.plots.scaling import accuracy_by_tokens, shared_budget
from asu.plots.speculation import acceptance, speedup_by_batch, speedup_by_yield, throughput_two_ways
from asu.plots.weight_quantisation import accuracy_by_format, damage_by_length, step_time
from asu.plots.workload import attainment, effects_by_load, goodput, traffic_over_time, waits, waits_by_burstiness

__all__ = [
    "acceptance",
    "speedup_by_batch", "speedup_by_yield",
    "throughput_two_ways",
    "PAPER_RUNNING",
    "accuracy_by_format",
    "accuracy_by_level",
    "accuracy_by_tokens",
    "agreement",
    "attainment",
    "batch_size",
    "break_even",
    "budget_curve",
    "claims_picture",
    "damage_by_length",
    "domain_preference",
    "effects",
    "error_growth",
    "effects_by_load",
    "flawed_claims",
    "flaws",
    "goodput",
    "kv_summary",
    "kv_use_over_time",
    "length_by_outcome",
    "load_label",
    "outcomes",
    "prompt_costs",
    "queue_over_time",
    "running_over_time",
    "step_time",
    "shared_budget",
    "straggler_summary",
    "survivor",
    "swimlane",
    "time_vs_difficulty",
    "traffic_over_time",
    "waits",
    "waits_by_burstiness",
]
