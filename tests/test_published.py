"""Published run records: whole, small, without secrets, and enough to render the notebooks of their profile."""

import json
import os
import subprocess
import sys

import pytest
from asu import paths, profiles, records
from asu.specs import canonical

PUBLISHED = sorted(folder for folder in paths.PUBLISHED.glob("*") if folder.is_dir())
RUNS = sorted(done.parent for folder in PUBLISHED for done in folder.glob("*/DONE"))
RENDERED = [profile for profile in map(profiles.load, profiles.names()) if profile.records]
LIMIT_BYTES = 15 << 20  # of one set of records in the repository
# A run shorter than this may end before the engine refreshes its gauges.
GAUGE_S = {"vllm": 1.0, "lmdeploy": 10.0, "sglang": 10.0}


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_records_are_small_and_finished(folder):
    runs = [path for path in folder.iterdir() if path.is_dir() and path.name != "machines"]
    assert runs and all((run / "DONE").is_file() for run in runs)
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < LIMIT_BYTES


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_every_record_is_read_by_a_profile_and_none_is_missing(folder):
    asked = {canonical(spec.model_dump(mode="json")) for profile in RENDERED if profile.records == folder.name
             for notebook in profile.notebooks for spec in profiles.study_of(notebook, profile.name).specs}
    assert set(records.Store(folder).complete()) == asked


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: folder.name)
def test_every_run_reads_back_whole(folder):
    run = records.read(folder)
    whole = run.requests[run.requests.error.isna()]
    assert len(whole) and (whole.output_tokens > 0).all()
    assert run.env["gap_tokens"] == (whole.output_tokens - whole.event_tokens).sum() == 0
    assert run.env["kv_pool_tokens"]
    if whole.last_s.max() > GAUGE_S[run.spec.engine]:
        assert run.engine.kv_use.max() > 0
    if run.spec.lengths:
        assert (whole.output_tokens == whole.max_tokens).all(), "a replayed length was not kept"
        assert run.requests.outcome.isna().all()
    else:
        assert run.requests.outcome.notna().all()


@pytest.mark.parametrize("profile", RENDERED, ids=lambda profile: profile.name)
@pytest.mark.timeout(1900)  # two minutes on a machine of one's own, many times that on a busy one
def test_the_notebooks_of_the_profile_render_from_the_records(profile, tmp_path):
    environment = os.environ | {"ASU_OUTPUT": str(tmp_path)}
    made = subprocess.run([sys.executable, "-m", "asu", "report", "--profile", profile.name], cwd=paths.ROOT,
                          env=environment, capture_output=True, text=True, timeout=1800)
    assert made.returncode == 0, made.stdout + made.stderr
    reports = tmp_path / "reports" / profile.name
    for notebook in profile.notebooks:
        page = (reports / f"{notebook}.html").read_text()
        assert "<svg" in page and "Traceback (most recent call last)" not in page
        assert json.loads((reports / "numbers" / f"{notebook}.json").read_text())
    assert not list(tmp_path.glob("runs/*/spec.json")), "records are read, nothing is run"
