"""Fixtures of general use: toys instead of engines, weights and problem sets; a store; a running fake server."""

import signal

import pytest
import toys as playthings
from asu import engines, runs, tasks
from fake_engine import FakeAdapter
from hypothesis import settings

settings.register_profile("asu", deadline=None)  # a busy machine is no failure
settings.load_profile("asu")

# A shell that runs the tests in the background has them ignore Ctrl-C, and so would every child they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def toys(monkeypatch):
    """Let runs and studies use the toy task and fixed inputs."""
    monkeypatch.setattr(tasks, "get", lambda name: playthings.ToyTask())
    monkeypatch.setattr(runs, "inputs", lambda spec: playthings.INPUTS)
    monkeypatch.setattr(engines, "get", lambda name: FakeAdapter())


@pytest.fixture
def store(tmp_path):
    return runs.Store(tmp_path / "runs")


@pytest.fixture
def server(tmp_path):
    with playthings.server(tmp_path / "server.log") as running:
        yield running
