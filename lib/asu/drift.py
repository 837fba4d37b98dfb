"""Does damage grow with the length of the reasoning? Accuracy lost against thinking length, and the first wrong step.

What the miniature thinks is a worked solution, so each of its steps can be checked without a model: an equation of a
sum, a line of nested arithmetic that must keep the value of the line before, a remainder of a search by trial. Facts
have no steps. A token is a character there, so positions in the text are positions in tokens.
"""

import ast
import operator
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from asu import metrics, stats, tasks

CHECKED = ("mini-easy", "mini-medium", "mini-hard")
LENGTHS = (0, 50, 100, 200, 400, 800, np.inf)  # edges of the bins of thinking tokens
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}
_EQUATION = re.compile(r"(\d{1,12})([-+*])(\d{1,12})=(\d{1,12})")
_TRIAL = re.compile(r"(\d{1,12}):(\d{1,12})")
_SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul}

Step = tuple[int, int, bool]  # where it begins and ends in the text, and whether it is right


def steps(task: str, prompt: str, text: str) -> list[Step]:
    """The steps of a solution in order; a piece that is no step of its kind counts as a wrong one."""
    return list({"mini-easy": _sums, "mini-medium": _reductions, "mini-hard": _trials}[task](prompt, text))


def _pieces(text: str, between: str) -> Iterator[tuple[int, int, str]]:
    at = 0
    for piece in text.split(between):
        if piece:
            yield at, at + len(piece), piece
        at += len(piece) + 1


def _sums(prompt: str, text: str) -> Iterator[Step]:
    """a+b=c: right if it adds up and works on numbers of the problem or results of steps before."""
    known = {int(number) for number in re.findall(r"\d+", prompt)}
    for begin, end, piece in _pieces(text, " "):
        found = _EQUATION.fullmatch(piece)
        if not found:
            yield begin, end, False
            continue
        a, b, result = int(found[1]), int(found[3]), int(found[4])
        yield begin, end, {a, b} <= known and _SIGNS[found[2]](a, b) == result
        known.add(result)


def _reductions(prompt: str, text: str) -> Iterator[Step]:
    """Each line is the one before with an operation carried out: right if it has the same value."""
    before = _value(prompt.removeprefix("Compute ").removesuffix("."))
    for begin, end, piece in _pieces(text, "\n"):
        value = _value(piece)
        yield begin, end, value is not None and value == before
        before = value


def _value(expression: str) -> int | None:
    """Value of whole numbers under +, -, * and brackets; None for any other text."""
    if not re.fullmatch(r"[-\d+*()]{1,400}", expression) or "**" in expression or re.search(r"\d{13}", expression):
        return None
    try:
        return _of(ast.parse(expression, mode="eval").body)
    except (SyntaxError, KeyError, AttributeError, RecursionError, ValueError):
        return None


def _of(node: ast.expr) -> int:
    if isinstance(node, ast.Constant):
        return node.value
    return _OPERATORS[type(node.op)](_of(node.left), _of(node.right))


def _trials(prompt: str, text: str) -> Iterator[Step]:
    """x:r for x = 1, 2, 3 …: right if x follows the one before and a·x mod m is r."""
    a, modulus = (int(number) for number in re.search(r"(\d+)\*x mod (\d+)", prompt).groups())
    before = 0
    for begin, end, piece in _pieces(text, " "):
        found = _TRIAL.fullmatch(piece)
        x = int(found[1]) if found else before + 1
        yield begin, end, bool(found) and x == before + 1 and a * x % modulus == int(found[2])
        before = x


def prompts(requests: pd.DataFrame) -> dict[str, str]:
    """{problem id: prompt} of the problems in `requests` whose solutions can be checked."""
    wanted = [name for name in requests.task.unique() if name in CHECKED]
    return {problem.id: problem.prompt for name in wanted for problem in tasks.get(name).problems()}


def first_wrong(requests: pd.DataFrame, problems: Mapping[str, str] | None = None) -> pd.DataFrame:
    """One row per finished request that thought about a checkable problem: where its solution first goes wrong.

    problems: {problem id: prompt}, by default those of the sets. Added to the request's columns: steps (complete ones),
    wrong (whether any is wrong), wrong_step (place of the first wrong one, from 1; NaN: none), right_tokens (thinking
    tokens before it begins, all of them where none is wrong: the time of a survivor curve, seen where wrong).
    """
    problems = prompts(requests) if problems is None else problems
    asked = requests[requests.task.isin(CHECKED) & requests.error.isna() & (requests.thinking_tokens > 0)]
    texts = metrics.texts(asked).str.split("\0").str[0]
    found = [_first(row.task, problems[row.problem_id], text, cut=pd.isna(row.visible_s))
             for row, text in zip(asked.itertuples(), texts, strict=True)]
    columns = pd.DataFrame(found, index=asked.index, columns=["steps", "wrong", "wrong_step", "right_tokens"])
    return asked.join(columns)


def _first(task: str, prompt: str, text: str, cut: bool) -> tuple[int, bool, float, float]:
    all_steps = steps(task, prompt, text.removesuffix("</think>"))
    if cut:
        all_steps = all_steps[:-1]  # the budget ended in the middle of it
    for place, (begin, _, right) in enumerate(all_steps, 1):
        if not right:
            return len(all_steps), True, float(place), float(begin)
    return len(all_steps), False, np.nan, float(all_steps[-1][1] if all_steps else 0)


def still_right(checked: pd.DataFrame, by: Sequence[str] = ("task", "weights")) -> pd.DataFrame:
    """Share of solutions without a wrong step after so many thinking tokens; solutions that end are censored.

    checked: from `first_wrong`. Columns: `by`, then those of `stats.kaplan_meier`, its time in tokens; no rows where
    nothing was checked.
    """
    curves = [stats.kaplan_meier(part.right_tokens, part.wrong).assign(**dict(zip(by, key, strict=True)))
              for key, part in checked.groupby(list(by), sort=False)]
    if not curves:
        return pd.DataFrame(columns=[*by, "time", "at_risk", "events", "censored", "survival", "lo", "hi"])
    together = pd.concat(curves, ignore_index=True)
    return together[[*by, *(column for column in together if column not in by)]]


def slips(checked: pd.DataFrame, by: Sequence[str] = ("task", "weights"), **options) -> pd.DataFrame:
    """First wrong steps per 1,000 thinking tokens written until then: `by`, value, lo, hi, unit, n."""
    return stats.by_group(checked, list(by), lambda part: stats.bootstrap(
        stats.ratio_of_sums(part.wrong * 1000.0, part.right_tokens), part.problem_id, unit="/1,000 tok", **options))


def slip_ratio(checked: pd.DataFrame, arm: str, on, off, **options) -> stats.Estimate:
    """Slips per token of `on` over those of `off`, on the same problems; above 1 the errors come sooner."""
    parts = [stats.on(checked[arm] == value, stats.ratio_of_sums(
        checked.wrong[checked[arm] == value], checked.right_tokens[checked[arm] == value])) for value in (on, off)]
    return stats.bootstrap(stats.ratio(*parts), checked.problem_id, unit="×", **options)


def losses(requests: pd.DataFrame, arm: str, off, pair: Sequence[str] = ("model", "task")) -> pd.DataFrame:
    """One row per request with an option on, beside the same request with it off, both graded.

    Columns: `pair`, problem_id, repeat, `arm`, hit and hit_off (1 or 0), loss = hit_off − hit,
    thinking_off (thinking tokens with the option off, which the option cannot have changed).
    """
    keys = [*pair, "problem_id", "repeat"]
    graded = metrics.derive(requests)
    graded = graded[graded.hit.notna()]
    without = graded[graded[arm] == off].drop_duplicates(keys)
    without = without[[*keys, "hit", "thinking_tokens"]].rename(
        columns={"hit": "hit_off", "thinking_tokens": "thinking_off"})
    both = graded.loc[graded[arm] != off, [*keys, arm, "hit"]].merge(without, on=keys)
    return both.assign(loss=both.hit_off - both.hit)


def loss_by_length(lost: pd.DataFrame, arm: str, edges: Sequence[float] = LENGTHS, **options) -> pd.DataFrame:
    """Accuracy lost by thinking length: `arm`, length (middle of the bin's requests [tok]), value, lo, hi, unit, n.

    lost: from `losses`, of models that think. Bins without a request give no row.
    """
    binned = lost.assign(bin=pd.cut(lost.thinking_off, list(edges), right=False, labels=False))
    rows = []
    for (value, _), part in binned[binned.bin.notna()].groupby([arm, "bin"], sort=False):
        loss = stats.bootstrap(stats.mean(part.loss), part.problem_id, unit="share", bounds=(-1, 1), **options)
        rows.append({arm: value, "length": float(part.thinking_off.median()), **loss.as_dict()})
    return pd.DataFrame(rows, columns=[arm, "length", "value", "lo", "hi", "unit", "n"]).sort_values(
        [arm, "length"], ignore_index=True)


def loss_slope(lost: pd.DataFrame, **options) -> stats.Estimate:
    """Right answers lost per 1,000 more thinking tokens, least squares over requests; problems are resampled.

    Of the requests that were answered rightly without: the others have nothing to lose, and they are the long ones.
    """
    right = lost[lost.hit_off == 1].reset_index(drop=True)
    return stats.bootstrap(stats.slope(right.thinking_off / 1000, right.loss), right.problem_id,
                           unit="share/1,000 tok", **options)
