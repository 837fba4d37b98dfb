"""The claims of the reproduced paper as data: statement, the paper's numbers, the test, the verdict.

`measure("01", engine=…)` gives all numbers of a notebook under the names that `decide` reads. One module per notebook
holds its numbers and claims; `core` says what these are, `paper` has the paper's own numbers.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from asu.claims import (
    budget_batch,
    domain,
    engines,
    honesty,
    kv_cache,
    kv_quantisation,
    prefix_caching,
    replay,
    running_time,
    scaling,
    speculation,
    stragglers,
    weight_quantisation,
    workload,
)
from asu.claims.core import NOTEBOOKS, NUMBERS, Claim, Number, Range, measure
from asu.claims.paper import (
    KNOWLEDGE,
    PAPER,
    SETS,
    beside_paper,
    paper,
    paper_budget_gain,
    paper_difference,
    paper_effects,
    paper_ratio,
    sets,
)
from asu.stats import Estimate

__all__ = ["CLAIMS", "KNOWLEDGE", "NOTEBOOKS", "NUMBERS", "PAPER", "SETS", "Claim", "Estimate", "Number", "Range",
           "beside_paper", "decide", "measure", "paper", "paper_budget_gain", "paper_difference",
           "paper_effects", "paper_ratio", "sets"]

CLAIMS = [claim for module in (
    kv_cache, stragglers, running_time, domain, budget_batch, weight_quantisation, kv_quantisation, prefix_caching,
    speculation, workload, engines, replay, scaling, honesty,
) for claim in module.CLAIMS]


def decide(numbers: Mapping[str, Estimate | Mapping | float]) -> pd.DataFrame:
    """One row per claim with its verdict from the recorded numbers; a number that is missing leaves it undecided.

    Columns: claim, statement, paper (its numbers, as text), paper_value, measured (with interval, as text), value, lo,
    hi, unit, threshold, direction (">", "<", "within" ± threshold), compared (the number set beside paper_value, as
    text), ratio_to_paper (compared / paper_value, of ratios) or minus_paper (compared − paper_value, of all else),
    excludes_paper (whether the interval of `compared` leaves paper_value out), verdict ("supported", "not supported",
    "undecided"), reason, notebook.
    """
    rows = []
    for claim in CLAIMS:
        recorded = claim.number in numbers
        measured = Estimate.of(numbers.get(claim.number))
        verdict, reason = claim.holds.verdict(measured)
        if not recorded:
            reason = f"{claim.number} has not been recorded; run notebook {claim.notebook}"
        compared = Estimate.of(numbers.get(claim.compared or claim.number))
        rows.append({
            "claim": claim.id, "statement": claim.statement, "paper": claim.paper, "paper_value": claim.paper_value,
            "measured": str(measured), "value": measured.value, "lo": measured.lo, "hi": measured.hi,
            "unit": NUMBERS[claim.number].unit, "threshold": claim.holds.threshold, "direction": claim.holds.direction,
            "compared": str(compared),
            "ratio_to_paper": compared.value / claim.paper_value if claim.is_ratio else np.nan,
            "minus_paper": np.nan if claim.is_ratio else compared.value - claim.paper_value,
            "excludes_paper": claim.paper_value < compared.lo or claim.paper_value > compared.hi,
            "verdict": verdict, "reason": reason, "notebook": claim.notebook})
    return pd.DataFrame(rows)
