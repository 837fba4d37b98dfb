"""Look at single runs: pick complete ones and metrics, see the table, the KV curve and a lane for every request."""

from pathlib import Path

import ipywidgets
import pandas as pd
from IPython.display import HTML, display
from matplotlib.figure import Figure

from asu import metrics, pages, paths, plots, records, study

FIRST_SHOWN = ("tps", "ttft_p50", "ttfvt_p50", "e2e_p50", "kv_peak", "kv_mean", "preemptions")
NO_RUN = "There is no complete run yet. Make some: python -m asu run --profile smoke (a minute or two), then run again."


def folders() -> dict[str, Path]:
    """All complete runs by a readable name, newest first: those made here, then the published ones."""
    found = {}
    for place, root in [("here", paths.RUNS), *((root.name, root) for root in sorted(paths.PUBLISHED.glob("*/")))]:
        done = sorted(root.glob("*/DONE"), key=lambda mark: mark.stat().st_mtime, reverse=True)
        found |= {f"{place}: {mark.parent.name}": mark.parent for mark in done}
    return found


def frames(chosen: list[Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(requests, engine) of some runs, with the labels that a study's frames carry."""
    parts = []
    for folder in chosen:
        run = records.read(folder)
        labels = {"run": folder.name[:8], **study.labels(run.spec), "kv_pool_actual": run.env["kv_pool_tokens"]}
        pools = {"kv_pool_tokens": "Int64", "kv_pool_actual": "Int64"}  # not known is a value: else no look-up finds it
        parts.append([frame.assign(**labels).astype(pools) for frame in (run.requests, run.engine)])
    requests, engine = (pd.concat(list(part), ignore_index=True) for part in zip(*parts, strict=True))
    return requests, engine


def view(chosen: list[Path], names: list[str]) -> str:
    """HTML of some runs: a table of metrics, KV use over time, and each run's requests one by one."""
    requests, engine = frames(chosen)
    by = ["run", "model", "task", "load", "budget", "kv_pool_tokens"]
    table = metrics.asu(requests, by=by, engine=engine)
    parts = [pages.table(table[[*by, *names]], "; ".join(metrics.METRICS[name].label for name in names))]
    if engine.kv_use.notna().any():
        parts.append(_figure(plots.kv_use_over_time(engine), "explore-kv", "KV-cache use over time."))
    for run, rows in requests.groupby("run", sort=False):
        lanes = f"Requests of run {run}, {rows.model.iloc[0]} on {rows.task.iloc[0]}, in the order they were due."
        if rows.last_s.notna().any():
            parts.append(_figure(plots.swimlane(rows), f"explore-{run}", lanes))
    return "\n".join(parts)


def _figure(figure: Figure, name: str, caption: str) -> str:
    return pages.figure(pages.svg(figure, name, caption), name, caption)


def panel() -> ipywidgets.Widget | HTML:
    """Widgets to pick runs and metrics, with `view` below them; a message where there is no run."""
    runs = folders()
    if not runs:
        return HTML(f"<p>{NO_RUN}</p>")
    wide = ipywidgets.Layout(width="100%")
    pick_runs = ipywidgets.SelectMultiple(options=list(runs), value=[next(iter(runs))], rows=8, layout=wide,
                                          description="Runs")
    offered = [name for name, metric in metrics.METRICS.items() if metric.needs not in ("gaps", "host")]
    pick_metrics = ipywidgets.SelectMultiple(options=offered, value=FIRST_SHOWN, rows=8, layout=wide,
                                             description="Metrics")

    def draw(chosen: tuple[str, ...], names: tuple[str, ...]) -> None:
        display(HTML(view([runs[name] for name in chosen], list(names)) if chosen else "<p>Pick at least one run.</p>"))

    drawn = ipywidgets.interactive_output(draw, {"chosen": pick_runs, "names": pick_metrics})
    return ipywidgets.VBox([ipywidgets.HBox([pick_runs, pick_metrics], layout=wide), drawn])
