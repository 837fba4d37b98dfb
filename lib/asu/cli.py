"""The command line: what the notebooks do, without opening them."""

import functools
import os
import shutil
from collections.abc import Callable

import pandas as pd
import psutil
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from asu import cost, engines, models, paths, profiles, quantise, runs
from asu.engines import base
from asu.errors import AsuError
from asu.progress import clock_text
from asu.study import Study

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Measure how reasoning models behave in a serving engine. Commands may be given again at any "
                       "time: finished work is skipped, unfinished work goes on where it stopped.")

_PROFILE = typer.Option("embedded", help="Parameters to use: a file in notebooks/profiles.")
_NOTEBOOK = typer.Option(None, "--notebook", "-n", help="Only this notebook; may be given more than once.")


def command(**settings) -> Callable:
    """Register a command whose errors are one clean message: exit code 1, or 130 after Ctrl-C."""
    def register(function):
        @functools.wraps(function)
        def guarded(*args, **kwargs):
            try:
                return function(*args, **kwargs)
            except AsuError as error:
                typer.secho(f"\nerror: {error}", fg="red", err=True)
                raise typer.Exit(1) from None
            except KeyboardInterrupt as stop:
                kept = f"{stop}\n" if str(stop) else ""
                typer.echo(f"\nstopped. {kept}Resume with the same command.", err=True)
                raise typer.Exit(130) from None
        return app.command(**settings)(guarded)
    return register


def _by_notebook(profile: str, notebooks: list[str] | None) -> dict[str, Study]:
    """The study of every notebook of a profile, or of some of them."""
    chosen = profiles.load(profile)
    if chosen.records:
        os.environ.setdefault("ASU_RECORDS", chosen.records)  # for the notebooks' kernels too
    return {name: profiles.study_of(name, profile) for name in notebooks or chosen.notebooks}


def _studies(profile: str, notebooks: list[str] | None) -> list[Study]:
    """All runs of a profile, or of some of its notebooks, joined so that they share servers: one study per store."""
    joined = {}
    for study in _by_notebook(profile, notebooks).values():
        joined[study.store.root] = joined[study.store.root] + study if study.store.root in joined else study
    return list(joined.values())


@command(epilog="Example: python -m asu plan --profile embedded -n 02_stragglers")
def plan(profile: str = _PROFILE, notebook: list[str] = _NOTEBOOK):
    """Show the runs a profile needs, which are done, and how long the rest takes. Starts nothing."""
    for study in _studies(profile, notebook):
        _print_plan(study)
        _print_cost(study)


def _print_plan(study: Study) -> None:
    frame = study.plan()
    table = Table(title=f"{len(frame)} runs in {study.store.root}")
    for column in ("server", "run", "state", "estimate"):
        table.add_column(column, justify="right" if column == "estimate" else "left", overflow="fold")
    for row in frame.itertuples():
        state = "done" if row.done else f"blocked: {row.blocked}" if isinstance(row.blocked, str) else "to do"
        table.add_row(str(row.server), row.run, state, "" if row.done else clock_text(row.estimate_s))
    Console().print(table)
    if len(frame) and not frame.done.all():
        left = frame[~frame.done]
        typer.echo(f"{len(left)} runs to make on {left.server.nunique()} servers, "
                   f"about {clock_text(study.estimate_s())}.")
    else:
        typer.echo("Nothing to do.")


def _print_cost(study: Study) -> None:
    """What the study's large models ask of GPUs, if it has any; nothing is fetched for it."""
    frame = cost.table(study.specs)
    if frame.empty:
        return
    rates = cost.measured()
    table = Table(title="GPU memory by the models' shapes; GPU-hours by the rates of "
                        f"{len(rates)} published runs, scaled by the bytes a step moves")
    columns = {"model": "model", "engine": "engine", "weights": "weights", "kv_pool_tokens": "KV pool [tok]",
               "runs": "runs", "gib": "GPU memory needed [GiB]", "gpus": "GPUs", "gpu_hours": "estimated GPU-hours"}
    for title in columns.values():
        table.add_column(title, justify="left" if title in ("model", "engine", "weights") else "right")
    for row in frame.itertuples():
        cells = [getattr(row, name) for name in columns]
        cells = [f"{cell:.1f}" if isinstance(cell, float) else cell for cell in cells]
        table.add_row(*("as the engine chooses" if pd.isna(cell) else str(cell) for cell in cells))
    table.add_section()
    table.add_row("total", "", "", "", str(frame.runs.sum()), f"at most {frame.gib.max():.1f}",
                  f"at most {frame.gpus.max()}", f"{frame.gpu_hours.sum():.1f}")
    Console().print(table)
    assumed = sorted({task for tasks in frame.assumed for task in tasks.split(", ") if task})
    if assumed:
        typer.echo(f"Output lengths of other models stand for some of these on {', '.join(assumed)}: there none were "
                   "recorded. Memory is weights and KV pool; an engine takes some more to compute in.")


@command(epilog="Example: python -m asu run -n 01_kv_cache_usage")
def run(profile: str = _PROFILE, notebook: list[str] = _NOTEBOOK):
    """Make the runs that are missing, servers shared. Kill it at any time; the same command goes on."""
    for study in _studies(profile, notebook):
        study.run()


@command(epilog="Example: python -m asu report --profile embedded")
def report(profile: str = _PROFILE, notebook: list[str] = _NOTEBOOK):
    """Execute the notebooks from complete runs and write the HTML report with its index. Starts no engine."""
    _need_runs(profile, notebook)
    _report(profile, notebook)


@command(epilog="Example: python -m asu reproduce")
def reproduce(profile: str = _PROFILE):
    """Everything: missing runs of all notebooks grouped by server, then all notebooks, then the index."""
    for study in _studies(profile, None):
        study.run()
    _report(profile, None)


def _need_runs(profile: str, notebooks: list[str] | None) -> None:
    """AsuError if runs are missing: a notebook would make them."""
    plans = {name: study.plan() for name, study in _by_notebook(profile, notebooks).items() if len(study)}
    missing = {name: plan[~plan.done] for name, plan in plans.items() if not plan.done.all()}
    if not missing:
        return
    records = os.environ.get("ASU_RECORDS")
    counts = ", ".join(f"{len(rows)} of {name}" for name, rows in missing.items())
    blocked = {reason: None for rows in missing.values() for reason in rows.blocked.dropna()}
    raise AsuError(
        f"runs are missing{f' in records {records}' if records else ''}: {'; '.join([counts, *blocked])}",
        f"restore the records: git checkout data/runs/{records}; if they are whole, look whether "
        f"notebooks/profiles/{profile}.yaml asks for other runs or ASU_RECORDS names other records" if records
        else f"make them first: make reproduce PROFILE={profile}")


def _report(profile: str, notebooks: list[str] | None) -> None:
    from asu import report as reports  # here because nbconvert and papermill take seconds to import

    typer.echo(f"report: {reports.build(profile, notebooks=notebooks or None)}")


@command(epilog="Example: python -m asu doctor --hub")
def doctor(hub: bool = typer.Option(False, "--hub", help="Also try to reach the model hub.")):
    """Say what this machine can run, and what to install or restore for the rest."""
    table = Table(show_header=False, box=None)
    for what, good, text in _findings(hub):
        table.add_row("[green]ok[/]" if good else "[yellow]--[/]", what, escape(text))
    Console(width=max(100, shutil.get_terminal_size().columns)).print(table)


@command(epilog="Example: python -m asu quantize mini-4m-think w4a16")
def quantize(model: str = typer.Argument(help="A model of the catalogue."),
             scheme: str = typer.Argument(help=", ".join(quantise.SCHEMES))):
    """Make a quantised checkpoint of a model's bf16 weights, in an environment of its own."""
    typer.echo(f"quantised: {quantise.make(models.get(model), scheme)}")


def _findings(hub: bool):
    """(what, good, text) for everything runs and reports need."""
    folder = next(path for path in (paths.OUTPUT, *paths.OUTPUT.resolve().parents) if path.exists())
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(folder)
    cores = runs.machine()["cores"]
    yield "processor", True, f"{runs.machine()['cpu']}, {cores} cores"
    yield "memory", memory.available > 6e9, f"{memory.available / 1e9:.0f} GB free; 6 needed"
    yield "disk", disk.free > 2e9, f"{disk.free / 1e9:.0f} GB free in {paths.OUTPUT}; 2 needed"
    gpus = base.gpus()
    yield "GPU", bool(gpus), ", ".join(gpu.name for gpu in gpus) or "none: profiles embedded and smoke need none"
    for engine in engines.ENGINES.values():
        try:
            yield f"engine {engine.name}", True, engine.version()
        except AsuError as error:
            yield f"engine {engine.name}", False, f"{error.problem}; {error.remedy}"
    local = [model for model in models.CATALOGUE.values() if model.folder.is_dir()]
    absent = [model.name for model in models.CATALOGUE.values() if model.miniature and model not in local]
    yield "weights", not absent, (f"missing: {', '.join(absent)}; git checkout data/models, or make miniature" if absent
                                  else f"here: {', '.join(model.name for model in local)}")
    yield from _fonts()
    for name in profiles.names():
        try:
            yield f"profile {name}", True, profiles.load(name).description
        except AsuError as error:
            yield f"profile {name}", False, f"{error.problem}; {error.remedy}"
    token = bool(os.environ.get("HF_TOKEN"))
    yield "hub token", token, "HF_TOKEN is set" if token else "none: gpqa and llama-3.3-70b are gated and need one"
    if hub:
        yield _hub()


def _fonts():
    from matplotlib import font_manager

    names = {font.name for font in font_manager.fontManager.ttflist}
    yield "fonts", "DejaVu Sans" in names, f"{len(names)} families; figures use DejaVu Sans, which matplotlib brings"


def _hub() -> tuple[str, bool, str]:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    try:
        huggingface_hub.HfApi().model_info("Qwen/Qwen3-0.6B", timeout=10)
    except (HfHubHTTPError, OSError) as error:
        return "hub", False, f"cannot be reached ({type(error).__name__}); profiles embedded and smoke need none"
    return "hub", True, "reachable"
