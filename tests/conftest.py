"""Fixtures of general use: toys instead of engines, weights and problem sets; a store; a server."""

import pytest
import toys as playthings
from asu import runs, tasks


@pytest.fixture
def toys(monkeypatch):
    """Let runs and studies use the toy task and fixed inputs."""
    monkeypatch.setattr(tasks, "get", lambda name: playthings.ToyTask())
    monkeypatch.setattr(tasks, "outcome", playthings.outcome)
    monkeypatch.setattr(runs, "inputs", lambda spec: playthings.INPUTS)


@pytest.fixture
def store(tmp_path):
    return runs.Store(tmp_path / "runs")


@pytest.fixture
def stub(tmp_path):
    with playthings.StubServer(log_path=tmp_path / "stub.log") as server:
        yield server
