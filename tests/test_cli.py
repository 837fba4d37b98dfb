"""The command line and the profiles behind it: what is refused, how, and with which exit code."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toys as playthings
import yaml
from asu import cli, paths, profiles, runs, study
from asu.errors import AsuError
from asu.study import Study
from typer.testing import CliRunner

PARAMETERS = '''PROBLEMS = 4  # how many
RATE = 0.5  # [1/s]
BUDGETS = [64, 128]  # [tokens]
NAME = "x"
CACHE = False
'''
STUDY = 'study = Study(models="mini-4m-think", tasks="toy", problems=PROBLEMS, budgets=BUDGETS)'


def cell(source, *tags, kind="code"):
    return {"cell_type": kind, "metadata": {"tags": list(tags)}, "source": source.splitlines(keepends=True)}


def write_notebook(name, *cells):
    (paths.NOTEBOOKS / f"{name}.ipynb").write_text(json.dumps({"cells": list(cells), "nbformat": 4}))


def write_profile(notebooks, name="embedded"):
    data = {"profile": name, "description": "small", "notebooks": notebooks}
    (paths.PROFILES / f"{name}.yaml").write_text(data if isinstance(data, str) else yaml.safe_dump(data))


@pytest.fixture
def house(tmp_path, monkeypatch):
    """Two notebooks, one of them with a study, and a profile of both."""
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(paths, "PROFILES", tmp_path / "notebooks" / "profiles")
    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    paths.PROFILES.mkdir(parents=True)
    write_notebook("01_first", cell("# Why?", kind="markdown"), cell("from asu.study import Study\n"),
                   cell(PARAMETERS, "parameters"), cell(STUDY, "study"), cell("raise SystemError('after the study')"))
    write_notebook("00_summary", cell("import json"), cell('TITLE = "all"', "parameters"))
    write_profile({"01_first": {"PROBLEMS": 3}, "00_summary": None})
    return tmp_path


def asu(*words):
    return CliRunner().invoke(cli.app, [*words])


def test_the_notebook_is_where_the_study_is_written(house):
    made = profiles.study_of("01_first", "embedded")
    assert [(s.problems, s.sampling.budget) for s in made.specs] == [(3, 64), (3, 128)]
    assert len(profiles.study_of("00_summary", "embedded")) == 0


def test_parameters_are_read_without_running_the_cell(house):
    assert profiles.parameters("01_first") == {
        "PROBLEMS": 4, "RATE": 0.5, "BUDGETS": [64, 128], "NAME": "x", "CACHE": False}


@pytest.mark.parametrize(("given", "problem", "remedy"), [
    ({"PROBLMES": 3}, "unknown parameter 'PROBLMES'", "did you mean 'PROBLEMS'"),
    ({"PROBLEMS": "3"}, "PROBLEMS is '3', not a whole number", "give a whole number"),
    ({"PROBLEMS": 3.0}, "PROBLEMS is 3.0, not a whole number", "give a whole number"),
    ({"PROBLEMS": True}, "PROBLEMS is True, not a whole number", "give a whole number"),
    ({"RATE": "1e-3"}, "RATE is '1e-3', not a number", "1.0e-3"),
    ({"BUDGETS": 64}, "BUDGETS is 64, not a list, each item a whole number, as", "give a list"),
    ({"BUDGETS": [64, "x"]}, "BUDGETS is [64, 'x'], not a list", "give a list"),
    ({"NAME": 3}, "NAME is 3, not a text", "give a text"),
    ({"CACHE": 1}, "CACHE is 1, not true or false", "give true or false"),
])
def test_misspelt_and_ill_typed_parameters_are_named(house, given, problem, remedy):
    write_profile({"01_first": given})
    with pytest.raises(AsuError) as error:
        profiles.load("embedded")
    assert problem in error.value.problem and "embedded.yaml, 01_first" in error.value.problem
    assert remedy in error.value.remedy


@pytest.mark.parametrize("given", [{"RATE": 2}, {"BUDGETS": []}, {"NAME": None}, {"CACHE": True}])
def test_parameters_of_the_right_type_pass(house, given):
    write_profile({"01_first": given})
    assert profiles.load("embedded").parameters("01_first") == given


def test_yaml_reads_bare_exponents_as_text(house):
    (paths.PROFILES / "embedded.yaml").write_text(
        "profile: embedded\ndescription: d\nnotebooks:\n  01_first: {RATE: 1e-3}\n")
    with pytest.raises(AsuError, match="RATE is '1e-3'"):
        profiles.load("embedded")


@pytest.mark.parametrize(("text", "problem"), [
    ("profile: [", "is not YAML"), ("profile: embedded\n", "does not hold exactly"),
    ("profile: other\ndescription: d\nnotebooks: {}\n", "calls itself 'other'"),
    ("profile: embedded\ndescription: d\nnotebooks: [01_first]\n", "notebooks is no mapping")])
def test_broken_profiles(house, text, problem):
    (paths.PROFILES / "embedded.yaml").write_text(text)
    with pytest.raises(AsuError, match=problem):
        profiles.load("embedded")


def test_a_profile_reads_the_records_it_names(house, monkeypatch):
    monkeypatch.setenv("ASU_RECORDS", "")  # put back as it was in the end
    del os.environ["ASU_RECORDS"]
    (paths.PROFILES / "embedded.yaml").write_text(
        "profile: embedded\ndescription: d\nrecords: none-such\nnotebooks: {01_first: {}}\n")
    with pytest.raises(AsuError, match="no published records 'none-such'"):
        cli._studies("embedded", None)


def test_unknown_names_come_with_the_nearest(house):
    with pytest.raises(AsuError, match="did you mean 'embedded'"):
        profiles.load("embeded")
    with pytest.raises(AsuError, match="did you mean '01_first'"):
        profiles.study_of("01_frist", "embedded")
    write_profile({"02_second": {}})
    with pytest.raises(AsuError, match="no notebook '02_second'"):
        profiles.load("embedded")


@pytest.mark.parametrize(("cells", "problem"), [
    ([cell("A = 1")], "has 0 cells tagged 'parameters'"),
    ([cell("A = 1", "parameters"), cell("B = 1", "parameters")], "has 2 cells"),
    ([cell("A = 1\nB = A + 1", "parameters")], "more than NAME = literal"),
    ([cell("print(1)", "parameters")], "more than NAME = literal")])
def test_parameter_cells_hold_literals_alone(house, cells, problem):
    write_notebook("01_first", *cells)
    with pytest.raises(AsuError, match=problem):
        profiles.parameters("01_first")


@pytest.mark.parametrize(("source", "problem"), [
    ("study = Study(modles='mini-4m-think')", "no axis 'modles'"), ("study = 1 / 0", "ZeroDivisionError"),
    ("other = 3", "makes no `study`")])
def test_a_broken_study_cell_says_where(house, source, problem):
    imports, given = cell("from asu.study import Study"), cell(PARAMETERS, "parameters")
    write_notebook("01_first", imports, given, cell(source, "study"))
    with pytest.raises(AsuError, match=problem):
        profiles.study_of("01_first", "embedded")


def test_run_makes_what_plan_says_is_missing(house, toys, monkeypatch):
    started = []

    def server(engine, model, options, *, log_path):
        started.append(playthings.server(log_path))
        return started[-1]

    monkeypatch.setattr(Study.run, "__kwdefaults__", Study.run.__kwdefaults__ | {"server": server})
    plan = asu("plan")
    assert plan.exit_code == 0 and "2 runs to make on 1 servers" in plan.output and not started
    assert asu("run", "-n", "01_first").exit_code == 0 and len(started) == 1
    again = asu("plan")
    assert again.exit_code == 0 and "Nothing to do." in again.output and "done" in again.output
    assert asu("run").exit_code == 0 and len(started) == 1


@pytest.mark.parametrize("words", [["plan", "--profile", "embeded"], ["run", "-n", "99_none"], ["report", "-n", "9"]])
def test_errors_are_one_clean_message(house, words):
    result = asu(*words)
    assert result.exit_code == 1 and "Traceback" not in result.output
    assert "error:" in result.output and "Remedy:" in result.output


@pytest.mark.parametrize("words", [["plan", "--proflie", "x"], ["plann"], []])
def test_wrong_usage_is_exit_code_2(words):
    result = asu(*words)
    assert result.exit_code == 2 and "Traceback" not in result.output


@pytest.mark.parametrize("name", ["plan", "run", "report", "reproduce", "doctor"])
def test_every_command_explains_itself(name):
    result = asu(name, "--help")
    assert result.exit_code == 0 and f"Example: python -m asu {name}" in result.output


def test_reproduce_makes_runs_then_the_report(house, monkeypatch):
    order = []
    monkeypatch.setattr(Study, "run", lambda self: order.append(len(self)))
    monkeypatch.setattr(cli, "_report", lambda profile, notebooks: order.append(profile))
    assert asu("reproduce").exit_code == 0 and order == [2, "embedded"]


def test_a_report_of_missing_runs_is_refused_and_starts_no_engine(house, toys, monkeypatch):
    write_notebook("02_second", cell("from asu.study import Study\n"), cell(PARAMETERS, "parameters"),
                   cell(STUDY.replace("budgets", "seed=7, budgets"), "study"))
    write_profile({"01_first": {"PROBLEMS": 3}, "02_second": {"BUDGETS": [64]}, "00_summary": None})
    made, reported = [], []
    monkeypatch.setattr(Study.run, "__kwdefaults__", Study.run.__kwdefaults__ | {
        "server": lambda *_, log_path: made.append(log_path) or playthings.server(log_path)})
    monkeypatch.setattr(cli, "_report", lambda profile, notebooks: reported.append(notebooks))
    refused = asu("report")
    assert refused.exit_code == 1 and "runs are missing: 2 of 01_first, 1 of 02_second\n" in refused.output
    assert "Remedy: make them first: make reproduce PROFILE=embedded" in refused.output
    assert asu("run", "-n", "01_first").exit_code == 0 and len(made) == 1
    assert "runs are missing: 1 of 02_second\n" in asu("report").output
    assert asu("report", "-n", "01_first").exit_code == asu("report", "-n", "00_summary").exit_code == 0
    assert reported == [["01_first"], ["00_summary"]] and len(made) == 1


def test_a_report_of_records_says_what_to_check_where_runs_are_missing(house, monkeypatch):
    monkeypatch.setenv("ASU_RECORDS", "")  # put back as it was in the end
    del os.environ["ASU_RECORDS"]
    monkeypatch.setattr(paths, "PUBLISHED", house / "published")
    (paths.PUBLISHED / "old").mkdir(parents=True)
    (paths.PROFILES / "embedded.yaml").write_text(
        "profile: embedded\ndescription: d\nrecords: old\nnotebooks: {01_first: {}}\n")
    refused = asu("report")
    assert refused.exit_code == 1 and "runs are missing in records old: 2 of 01_first\n" in refused.output
    assert "git checkout data/runs/old" in refused.output and "make reproduce" not in refused.output


def test_doctor_names_what_is_missing(house, monkeypatch):
    result = asu("doctor")
    assert result.exit_code == 0
    for word in ("processor", "memory", "disk", "GPU", "engine vllm", "engine lmdeploy", "weights", "fonts"):
        assert word in result.output
    monkeypatch.setattr(paths, "MODELS", house / "none")
    assert "missing: mini-4m-think" in asu("doctor").output


def test_ctrl_c_exits_130_and_says_how_to_go_on(house, tmp_path):
    script = tmp_path / "go.py"
    script.write_text(f"""
import logging
import sys
logging.getLogger("aiohttp.server").disabled = True  # the toy engine lives in this process and says who hung up
sys.path.insert(0, {str(Path(__file__).parent)!r})
import toys
from asu import cli, engines, runs, study, tasks
from fake_engine import FakeAdapter
tasks.get, runs.inputs = lambda name: toys.ToyTask(), lambda spec: toys.INPUTS
engines.get = lambda name: FakeAdapter()
study.Study.run.__kwdefaults__["server"] = lambda *_, log_path: toys.server(log_path, ttft_s=0.1)
cli.app(["run"])
""")
    (house / "data").mkdir()
    write_profile({"01_first": {"PROBLEMS": 200}})
    environment = os.environ | {"ASU_ROOT": str(house), "ASU_OUTPUT": str(house)}
    with subprocess.Popen([sys.executable, script], env=environment, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 120
        while not any("request_id" in journal.read_text() for journal in paths.RUNS.glob("*/journal.jsonl")):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        message = process.stderr.read()
        assert process.wait(20) == 130, message
    assert "of 200 requests are kept in" in message and "Resume with the same command." in message
    assert "Traceback" not in message


def test_the_module_runs_as_a_command():
    result = subprocess.run([sys.executable, "-m", "asu", "--help"], capture_output=True, text=True)
    assert result.returncode == 0 and "reproduce" in result.stdout
    assert runs.Store and study.local
