"""Synthetic frames of the contract's columns, for the figures' and the report's tests."""

import numpy as np
import pandas as pd
from asu.claims import CLAIMS
from asu.stats import Estimate

TASKS = ["mini-easy", "mini-medium", "mini-hard", "mini-facts"]
ROLES = ["RLLM", "LLM"]
PAIRS = ["mini-1m", "mini-4m"]
BUDGETS = [64, 128, 256, 512, 1024, 2048]


def _interval(frame: pd.DataFrame, half: float) -> pd.DataFrame:
    return frame.assign(lo=(frame["value"] - half).clip(lower=0), hi=frame["value"] + half)


def _product(**axes) -> pd.DataFrame:
    return pd.MultiIndex.from_product(axes.values(), names=axes).to_frame(index=False)


def engine(loads=("closed32",), pairs=tuple(PAIRS)) -> pd.DataFrame:
    """kv_use and running of every task, pair, role and load, at 4 Hz."""
    generator, parts = np.random.default_rng(0), []
    cells = _product(task=TASKS, pair=list(pairs), role=ROLES, load=list(loads))
    for task, pair, role, load in cells.itertuples(index=False):
        length = (6 + 6 * TASKS.index(task)) * (3 if role == "RLLM" else 1) * (1.6 if load.startswith("batch") else 1)
        t = np.arange(0, length, 0.25)
        shape = np.clip(np.sin(np.pi * t / length) ** 0.5 + generator.normal(0, 0.06, len(t)), 0.01, 1)
        saw = 1 - (t % (length / 2)) / (length / 2) if load.startswith("batch") else np.clip(4 * (1 - t / length), 0, 1)
        parts.append(pd.DataFrame({
            "task": task, "pair": pair, "role": role, "load": load, "run": f"{task}{pair}{role}{load}", "session": 0,
            "t_s": t, "kv_use": shape * (0.9 if role == "RLLM" else 0.15), "running": np.ceil(16 * saw), "waiting": 0.0,
            "kv_pool_actual": 8192 if pair == "mini-4m" else 4096}))
    return pd.concat(parts, ignore_index=True)


def requests(n=60) -> pd.DataFrame:
    """n requests of every task and role, the hard ones longer, some cut off."""
    generator, parts = np.random.default_rng(1), []
    for task, role in _product(task=TASKS, role=ROLES).itertuples(index=False):
        hard = TASKS.index(task) + 1
        difficulty = generator.integers(1, 11, n).astype(float)
        long = 20 * hard * difficulty * generator.lognormal(0, 0.4, n)
        tokens = long if role == "RLLM" else generator.integers(4, 12, n)
        tokens = np.minimum(tokens, 1500).astype(int)
        due = np.repeat(np.arange(0, n, 16)[: -(-n // 16)] * 1.5, 16)[:n]
        first = due + generator.uniform(0.05, 0.6, n)
        last = first + 0.02 * tokens
        cut = tokens >= 1500
        visible = np.where(cut, np.nan, last - 0.1 if role == "RLLM" else first)
        parts.append(pd.DataFrame({
            "task": task, "pair": "mini-4m", "role": role, "request_id": [f"{task}-{i}#0" for i in range(n)],
            "difficulty": difficulty, "due_s": due, "first_s": first, "visible_s": visible, "last_s": last,
            "output_tokens": tokens, "thinking_tokens": np.maximum(tokens - 8, 0) if role == "RLLM" else 0,
            "e2e_s": last - due, "finish_reason": np.where(cut, "length", "stop")}))
    return pd.concat(parts, ignore_index=True)


def slopes(metrics=("output_tokens", "e2e_s")) -> pd.DataFrame:
    frame, rows = requests(), []
    for task, role, metric in _product(task=TASKS, role=ROLES, metric=list(metrics)).itertuples(index=False):
        here = frame[(frame["task"] == task) & (frame["role"] == role)]
        slope = np.polyfit(here["difficulty"], here[metric], 1)[0]
        half = 0.2 * abs(slope) + 0.01
        rows.append({"task": task, "role": role, "metric": metric, "value": slope, "lo": slope - half,
                     "hi": slope + half})
    return pd.DataFrame(rows)


def kv_summary() -> pd.DataFrame:
    frame = _product(task=TASKS, pair=PAIRS, role=ROLES, metric=["kv_peak", "kv_mean", "kv_swing"])
    high = frame["role"].eq("RLLM") * 0.6 + 0.05
    part = frame["metric"].map({"kv_peak": 1, "kv_mean": 0.5, "kv_swing": 0.7})
    return _interval(frame.assign(value=high * part), 0.04)


def stragglers() -> pd.DataFrame:
    frame = _product(task=TASKS, role=ROLES, load=["batch16", "closed16"],
                     metric=["straggler_share", "makespan_ratio", "idle_share"])
    scale = frame["metric"].map({"straggler_share": 0.5, "makespan_ratio": 2.5, "idle_share": 0.6})
    return _interval(frame.assign(value=scale * frame["role"].map({"RLLM": 1, "LLM": 0.4})
                                  * frame["load"].map({"batch16": 1, "closed16": 0.6})), 0.03)


def differences() -> pd.DataFrame:
    frame = _product(task=TASKS, pair=PAIRS)
    value = frame["task"].map(dict(zip(TASKS, [0.3, 0.6, 0.4, -0.02], strict=True)))
    return frame.assign(value=value, lo=value - 0.08, hi=value + 0.08)


def shares() -> pd.DataFrame:
    parts = []
    for pair, task, role in _product(pair=PAIRS, task=TASKS, role=ROLES).itertuples(index=False):
        right = 0.8 - 0.15 * TASKS.index(task) - (0.2 if role == "LLM" else 0)
        for outcome, value in {"correct": right, "wrong": 0.8 - right, "unparsed": 0.05, "cut off": 0.13,
                               "failed": 0.02}.items():
            parts.append({"pair": pair, "task": task, "role": role, "outcome": outcome, "value": value,
                          "lo": max(0, value - 0.08), "hi": min(1, value + 0.08), "n": 120})
    return pd.DataFrame(parts)


def levels() -> pd.DataFrame:
    frame = _product(task=TASKS, pair=PAIRS, role=ROLES, level=[1, 2, 3, 4, 5])
    return _interval(frame.assign(value=1.0 - frame["level"] * frame["role"].map({"RLLM": 0.1, "LLM": 0.18})), 0.08)


def budget_curve() -> pd.DataFrame:
    frame = _product(task=TASKS, role=ROLES, budget=BUDGETS, metric=["accuracy", "cut_off"])
    need = frame["task"].map(dict(zip(TASKS, [60, 200, 600, 100], strict=True)))
    need = need * frame["role"].map({"RLLM": 1, "LLM": 0.05})
    done = 1 / (1 + (need / frame["budget"]) ** 2)
    value = done.where(frame["metric"] == "accuracy", 1 - done) * frame["role"].map({"RLLM": 0.9, "LLM": 0.5})
    return _interval(frame.assign(value=value), 0.05).assign(hi=lambda f: f["hi"].clip(upper=1))


def batch_curve() -> pd.DataFrame:
    frame = _product(task=TASKS, role=ROLES, batch=[8, 16, 32], metric=["tps", "ttfvt_mean", "accuracy"])
    slope = frame["metric"].map({"tps": 40.0, "ttfvt_mean": 0.3, "accuracy": 0.0})
    value = slope * frame["batch"] + frame["metric"].map({"tps": 300, "ttfvt_mean": 2, "accuracy": 0.7})
    value = value * frame["role"].map({"RLLM": 1.0, "LLM": 0.8})
    return frame.assign(value=value, lo=value * 0.9, hi=value * 1.1)


def survival() -> pd.DataFrame:
    parts = []
    for task, role in _product(task=TASKS, role=ROLES).itertuples(index=False):
        t = np.linspace(0, (30 if role == "RLLM" else 4) * (1 + TASKS.index(task)), 40)
        s = np.exp(-3 * t / t[-1]) * 0.95 + 0.05 * (role == "RLLM")
        censored = (np.arange(40) == 39) * 3 * (role == "RLLM")
        parts.append(pd.DataFrame({"task": task, "role": role, "time": t, "survival": s, "lo": (s - 0.08).clip(0),
                                   "hi": (s + 0.08).clip(None, 1), "censored": censored}))
    return pd.concat(parts, ignore_index=True)


def numbers() -> dict[str, Estimate]:
    """A value with an interval for every claim but the last; some clear, some not."""
    found = {}
    for k, claim in enumerate(CLAIMS[:-1]):
        middle = claim.holds.lo if np.isfinite(claim.holds.lo) else claim.holds.hi
        value = middle + [0.5, -0.4, 0.05][k % 3] * (abs(middle) or 1.0)
        found[claim.number] = Estimate(value, value - 0.15, value + 0.2, "×", 40)
    return found


def paper() -> pd.DataFrame:
    """Paper's 7B numbers for the miniature sets: RLLM, LLM per task."""
    peaks = {"mini-easy": (0.021, 0.012), "mini-medium": (0.041, 0.02), "mini-hard": (0.127, 0.037),
             "mini-facts": (0.187, 0.023)}
    return pd.DataFrame([{"task": task, "role": role, "metric": "kv_peak", "value": value}
                         for task, pair in peaks.items() for role, value in zip(ROLES, pair, strict=True)])
