"""Recorded lengths: whole, plausible, attributed, and what replay asks for."""

import re

import numpy as np
import pandas as pd
import pytest
from asu import models, paths, runs, workload
from asu.specs import EngineOptions, RunSpec, Sampling

FILES = sorted(paths.LENGTHS.glob("*.csv"))
COLUMNS = ["problem_id", "repeat", "output_tokens", "thinking_tokens", "prompt_tokens", "level", "difficulty"]
LICENCES = {"A": "MIT", "B": "Apache-2.0", "C": "MIT", "D": "MIT", "E": "MIT"}


def test_there_are_lengths_for_a_pair():
    assert {"r1-qwen-7b-math500-level5", "qwen2.5-math-7b-math500-level5"} <= {file.stem for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_rows_are_whole(file):
    frame = pd.read_csv(file)
    assert list(frame) == COLUMNS
    assert not frame.duplicated(["problem_id", "repeat"]).any()
    assert (frame.output_tokens > 0).all() and frame.output_tokens.dtype == "int64"
    assert not (frame.prompt_tokens <= 0).any() and not (frame.thinking_tokens > frame.output_tokens).any()
    repeats = frame.groupby("problem_id").repeat.agg(["min", "max", "count"])
    assert (repeats["min"] == 0).all() and (repeats["count"] == repeats["max"] + 1).all()
    assert frame.repeat.value_counts().nunique() == 1, "a repeat that lacks problems cannot be replayed"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_file_is_attributed(file):
    text = (paths.LENGTHS / "README.md").read_text()
    named = re.sub(r"^(mini-4m-\w+)-mini-\w+", r"\1-*set*", file.stem) + ".csv"
    row = re.search(rf"^\| .*{re.escape(named)}.* \| .+ \| (\w) \| ([\w.-]+) \|$", text, re.MULTILINE)
    assert row and LICENCES[row[1]] == row[2]
    source = r"this study: " if row[1] in "DE" else r"\S+/\S+, commit [0-9a-f]{7,}"
    assert re.search(rf"^- \*\*{row[1]}\*\* {source}", text, re.MULTILINE)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_replay_takes_them(file):
    model = max((name for name in models.CATALOGUE if file.stem.startswith(name + "-")), key=len)
    spec = RunSpec(model=model, task="math500", problems=5, lengths=file.stem, sampling=Sampling(budget=3000),
                   options=EngineOptions(random_weights=True, context=4096))
    wanted = runs.requests(spec)
    frame = pd.read_csv(file)
    first = frame[frame.repeat == 0].head(5)
    assert [request.problem.id for request in wanted] == list(first.problem_id)
    assert [request.max_tokens for request in wanted] == list(first.output_tokens.clip(upper=3000))


def test_reasoning_models_are_recorded_as_the_longer():
    mean = {file.stem: pd.read_csv(file).output_tokens.mean() for file in FILES}
    assert mean["r1-qwen-7b-math500-level5"] > 5 * mean["qwen2.5-math-7b-math500-level5"]
    assert mean["r1-qwen-7b-aime24"] > 2 * mean["r1-qwen-7b-math500"]


def test_drawn_lengths_are_what_their_law_gives(tmp_path):
    for file in workload.draw_lengths(tmp_path):
        assert file.read_text() == (paths.LENGTHS / file.name).read_text()
        mean, spread, *_ = workload.LAWS[file.stem]
        drawn = pd.read_csv(file).output_tokens
        assert drawn.mean() == pytest.approx(mean, rel=0.02)
        assert np.log(drawn).std() == pytest.approx(spread, rel=0.05)
