"""Every notebook, executed with small parameters on the real engine, into a finished report."""

import json
import os
import re
import subprocess
import sys

import pytest
from asu import paths, profiles
from test_notebooks import NEED_A_GPU


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """The folder that `asu reproduce --profile smoke` filled."""
    folder = tmp_path_factory.mktemp("smoke")
    result = _reproduce(folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def _reproduce(folder):
    return subprocess.run([sys.executable, "-m", "asu", "reproduce", "--profile", "smoke"], cwd=paths.ROOT,
                          env=os.environ | {"ASU_OUTPUT": str(folder)}, capture_output=True, text=True, timeout=2700)


@pytest.mark.engine
@pytest.mark.timeout(2800)  # five minutes on two cores of their own, many times that on busy ones
def test_every_notebook_has_its_page_and_its_numbers(output):
    stems = {path.stem for path in paths.NOTEBOOKS.glob("[0-9]*.ipynb")} - NEED_A_GPU
    assert stems == set(profiles.load("smoke").notebooks)
    reports = output / "reports" / "smoke"
    index = (reports / "index.html").read_text()
    for stem in stems:
        assert f"{stem}.html" in index
        page = (reports / f"{stem}.html").read_text()
        assert "Traceback (most recent call last)" not in page
        assert re.search(r"<svg", page), f"{stem} shows no figure"
    numbers = {path.stem: json.loads(path.read_text()) for path in (reports / "numbers").glob("*.json")}
    assert stems <= numbers.keys()


@pytest.mark.engine
@pytest.mark.timeout(2800)  # five minutes on two cores of their own, many times that on busy ones
def test_no_run_is_half_done_and_no_key_is_written(output):
    folders = [path for path in (output / "runs").iterdir() if (path / "spec.json").exists()]
    assert folders
    for folder in folders:
        assert (folder / "DONE").is_file(), folder.name
        assert not (folder / "journal.jsonl").exists()
        assert "Bearer" not in (folder / "server.log").read_text() and "api_key='" not in (
            folder / "server.log").read_text()


@pytest.mark.engine
@pytest.mark.timeout(2800)  # five minutes on two cores of their own, many times that on busy ones
def test_a_rerun_with_nothing_changed_redoes_nothing(output):
    files = [*(output / "runs").glob("*/DONE"), *(output / "reports" / "smoke").glob("0*.html")]
    before = {path: path.stat().st_mtime_ns for path in files}
    result = _reproduce(output)
    assert result.returncode == 0, result.stdout + result.stderr
    assert {path: path.stat().st_mtime_ns for path in files} == before
