"""Recorded arrivals in data/traces: how the extracts are made from their originals, and the speed that gives a rate.

`python -m asu.traces ORIGINALS` makes the files anew from a folder laid out as data/traces/README.md says.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from asu import load, paths
from asu.errors import AsuError
from asu.specs import Trace

ARRIVALS = 3000  # in each extract: ten times what a run sends, and 30 kB
WINDOW_S = 600.0  # the windows of the DeepSeek-R1 service's published parameters
SEED = 20251018  # of the arrivals drawn from those parameters


def mean_rate(name: str, n: int) -> float:
    """Mean rate of the first `n` arrivals of a trace as recorded [1/s]; AsuError where they have none."""
    times = load.trace_times(Trace(name=name), n)
    if n < 2 or times[-1] <= times[0]:
        raise AsuError(f"the first {n} arrivals of trace {name} span no time, so that they have no rate",
                       "ask for more requests, or use another trace")
    return float((n - 1) / (times[-1] - times[0]))


def speed(name: str, n: int, rate: float) -> float:
    """How much faster than recorded to send the first `n` arrivals of a trace, so that their mean rate is `rate`."""
    if not (np.isfinite(rate) and rate > 0):
        raise AsuError(f"a trace cannot be sent at a rate of {rate} requests per second", "give a rate above 0")
    return rate / mean_rate(name, n)


def at_rate(names: list[str], n: int, rate: float) -> list[dict]:
    """The loads of a study that send the first `n` arrivals of each trace at the mean rate `rate` [1/s]."""
    return [{"kind": "trace", "name": name, "speed": speed(name, n, rate)} for name in names]


# --- the extracts ---------------------------------------------------------------------------------------------------


def azure(path: Path, count: int = ARRIVALS) -> np.ndarray:
    """Arrivals from the middle of one of the Azure 2023 traces [s], shape (count,)."""
    stamps = pd.to_datetime(pd.read_csv(path, usecols=["TIMESTAMP"]).TIMESTAMP)
    return _middle((stamps - stamps.iloc[0]).dt.total_seconds().to_numpy(), count)


def mooncake(path: Path, count: int = ARRIVALS) -> np.ndarray:
    """Arrivals from the middle of a Mooncake trace [s]; recorded in ticks of about 3 s, which stay as they are."""
    rows = path.read_text().splitlines()
    return _middle(np.array([json.loads(row)["timestamp"] for row in rows]) / 1e3, count)


def servegen(folder: Path, count: int = ARRIVALS, seed: int = SEED) -> np.ndarray:
    """Arrivals drawn from ServeGen's published parameters of one 10-minute window [s], not recorded; shape (count,).

    The window is the one whose rate over all clients is nearest to the day's mean. Each client is a renewal process
    with its own Gamma or Weibull gaps (columns: window start [s], rate [1/s], CV, law, shape, scale [s]). It is drawn
    from one window earlier on, so that no client starts with a whole gap at the window's beginning.
    """
    columns = ["start_s", "rate", "cv", "law", "shape", "scale"]
    clients = [pd.read_csv(path, header=None, names=columns).set_index("start_s")
               for path in sorted(folder.glob("*-trace.csv"))]
    if not clients:
        raise AsuError(f"{folder} holds no *-trace.csv", "point to ServeGen's folder of the deepseek-r1 workload")
    rates = sum(client.rate for client in clients)
    window = (rates - rates.mean()).abs().idxmin()
    rng = np.random.default_rng(seed)
    parts = [_renewal(client.loc[window], rng) for client in clients if client.rate[window] > 0]
    return _from_zero(np.sort(np.concatenate(parts))[:count], count, folder)


def _renewal(client: pd.Series, rng: np.random.Generator) -> np.ndarray:
    """One client's arrivals within a window [s]."""
    laws = {"Gamma": lambda n: rng.gamma(client["shape"], client.scale, n),
            "Weibull": lambda n: client.scale * rng.weibull(client["shape"], n)}
    if client.law not in laws:
        raise AsuError(f"gaps of law {client.law!r} are not known", f"use one of: {', '.join(laws)}")
    times = np.array([0.0])
    while times[-1] < 2 * WINDOW_S:
        times = np.append(times, times[-1] + np.cumsum(laws[client.law](1000)))
    return times[(times >= WINDOW_S) & (times < 2 * WINDOW_S)] - WINDOW_S


def _middle(times: np.ndarray, count: int) -> np.ndarray:
    """`count` arrivals around the middle one, by order of arrival."""
    first = max(0, (len(times) - count) // 2)
    return _from_zero(times[first:first + count], count, "the original")


def _from_zero(times: np.ndarray, count: int, where) -> np.ndarray:
    if len(times) < count:
        raise AsuError(f"{where} gives {len(times)} arrivals, fewer than {count}", "use the whole original")
    return times - times[0]


Source = tuple[str, Callable[[Path], np.ndarray], str]
SOURCES: dict[str, Source] = {  # name -> (where in the folder of originals, how it is read, what it is)
    "azure-conversation": (
        "azure_2023/AzureLLMInferenceTrace_conv.csv", azure,
        "recorded: Azure LLM inference trace 2023, conversation; Azure/AzurePublicDataset b469a11, CC-BY-4.0"),
    "azure-code": (
        "azure_2023/AzureLLMInferenceTrace_code.csv", azure,
        "recorded: Azure LLM inference trace 2023, code; Azure/AzurePublicDataset b469a11, CC-BY-4.0"),
    "mooncake-conversation": (
        "mooncake/conversation_trace.jsonl", mooncake,
        "recorded in ticks of about 3 s: Mooncake, conversation; kvcache-ai/Mooncake 3b5a594, Apache-2.0"),
    "deepseek-r1-drawn": (
        "servegen_deepseek_r1", servegen,
        f"drawn with seed {SEED}, not recorded: from published parameters of a production DeepSeek-R1 service; "
        "alibaba/ServeGen f891d11, Apache-2.0"),
}


def build(originals: Path, target: Path | None = None) -> list[Path]:
    """Write every extract of SOURCES to `target` (data/traces): column t_s [s] from 0, milliseconds, ascending."""
    target = target or paths.TRACES
    for where, _, _ in SOURCES.values():
        if not (originals / where).exists():
            raise AsuError(f"{originals} holds no {where}", "fetch the originals that data/traces/README.md names")
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for name, (where, read, what) in SOURCES.items():
        path = target / f"{name}.csv"
        path.write_text(f"# {what}\nt_s\n" + "".join(f"{t:.3f}\n" for t in read(originals / where)))
        written.append(path)
    return written


if __name__ == "__main__":
    try:
        print(*build(Path(sys.argv[1] if len(sys.argv) == 2 else "ORIGINALS")), sep="\n")
    except AsuError as error:
        sys.exit(str(error))
