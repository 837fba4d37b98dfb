"""Exploring runs: what is offered, what is shown, and what is said where there is nothing."""

import ipywidgets
import nbformat
import pytest
from asu import explore, metrics, paths
from asu.progress import Silent
from asu.study import Study
from nbclient import NotebookClient
from toys import server


@pytest.fixture
def runs(toys, store, monkeypatch):
    Study(models=["mini-4m-think", "mini-4m-direct"], tasks="toy", budget=64, problems=4, store=store).run(
        Silent(), server=lambda engine, model, options, *, log_path: server(log_path, model=model, options=options))
    monkeypatch.setattr(paths, "RUNS", store.root)
    monkeypatch.setattr(paths, "PUBLISHED", store.root / "none")
    return explore.folders()


def test_runs_are_offered_by_name_and_shown(runs):
    assert len(runs) == 2 and all(name.startswith("here: ") for name in runs)
    html = explore.view(list(runs.values()), ["tps", "kv_peak"])
    assert html.count("<figure") >= 2 and "<table" in html
    assert metrics.METRICS["tps"].label in html and "mini-4m-direct" in html


def test_a_pool_that_the_engine_chose_hides_no_gauge(runs):
    requests, engine = explore.frames(list(runs.values()))
    assert requests.kv_pool_tokens.isna().all()
    busy = engine.assign(kv_use=0.5, running=1.0)
    shown = metrics.asu(requests, by=["run", "kv_pool_tokens"], engine=busy, names=["kv_peak"])
    assert shown.kv_peak.tolist() == [0.5, 0.5]


def test_the_panel_draws_what_is_picked(runs):
    panel = explore.panel()
    assert isinstance(panel, ipywidgets.VBox)
    pick_runs, pick_metrics = panel.children[0].children
    assert set(pick_runs.options) == set(runs) and "tps" in pick_metrics.value


def test_without_a_run_it_says_how_to_make_one(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RUNS", tmp_path)
    monkeypatch.setattr(paths, "PUBLISHED", tmp_path)
    assert explore.folders() == {} and "python -m asu run" in explore.panel().data


def test_the_notebook_runs_without_a_screen_and_without_a_run(tmp_path, monkeypatch):
    monkeypatch.setenv("ASU_OUTPUT", str(tmp_path))
    book = nbformat.read(paths.NOTEBOOKS / "explore.ipynb", as_version=4)
    NotebookClient(book, timeout=120, kernel_name="python3").execute()
    assert any(cell.get("outputs") for cell in book.cells)
