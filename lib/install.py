"""Make .venv, or a tool's own, from its lock: `python3 lib/install.py [cpu | cuda | lmdeploy | llmcompressor]`.

Standard library only, since it runs before anything is installed. Without an argument it takes `cuda` where there is an
NVIDIA GPU and `cpu` elsewhere. A second call installs nothing: the lock's digest is kept beside the environment.
"""

import ctypes
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ROOT / "lib" / "locks"
ENGINES = {"cpu": ".venv", "cuda": ".venv", "lmdeploy": ".venv-lmdeploy", "llmcompressor": ".venv-llmcompressor"}
COST = {"cpu": "about 1 min, 3.2 GB", "cuda": "more than on the CPU, since torch brings CUDA's libraries",
        "lmdeploy": "about 5 min, 8 GB", "llmcompressor": "about 1 min, 1.5 GB"}
UV = "uv==0.13.9"


def main(engine: str) -> None:
    lock, folder = LOCKS / f"{engine}.txt", ROOT / ENGINES[engine]
    stamp, wanted = folder / "installed.json", _digest(lock)
    if stamp.is_file() and json.loads(stamp.read_text()) == wanted:
        return
    if sys.version_info[:2] not in {(3, 11), (3, 12)}:
        _fail(f"Python {sys.version.split()[0]} runs this; the locks are for 3.11 (3.12 works on GPUs)",
              "call it with python3.11: make PYTHON=python3.11 …")
    began = time.monotonic()
    _system_packages(engine)
    _say(f"making {folder.name} for {engine} from lib/locks/{lock.name}: {COST[engine]}")
    if not (folder / "bin" / "python").exists():
        _run([sys.executable, "-m", "venv", str(folder)])
    python = str(folder / "bin" / "python")
    _run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", UV])
    if engine == "cpu" or (engine == "llmcompressor" and default() == "cpu"):
        _cpu_torch(python, _pinned(lock, "torch"))
    elif engine == "llmcompressor":
        _uv(python, _pinned(lock, "torch"))  # with the CUDA libraries it pins, which the CPU has no use for
    # The lock is complete, so nothing is resolved: what vLLM asks for but a text model never loads stays out.
    _uv(python, "--no-deps", "--requirement", str(lock))
    if folder.name == ".venv":
        _uv(python, "--no-deps", "--editable", str(ROOT))
    _run([python, "-m", "compileall", "-qq", "-j", "0", str(folder / "lib")], check=False)
    stamp.write_text(json.dumps(wanted))
    _say(f"{folder.name} ready in {time.monotonic() - began:.0f} s")


def default() -> str:
    """`cuda` where an NVIDIA driver is loaded."""
    return "cuda" if Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") else "cpu"


def _digest(lock: Path) -> dict:
    parts = (lock, ROOT / "pyproject.toml")
    return {part.name: hashlib.sha256(part.read_bytes()).hexdigest() for part in parts} | {"engine": lock.stem}


def _pinned(lock: Path, name: str) -> str:
    return next(line.strip() for line in lock.read_text().splitlines() if line.startswith(f"{name}=="))


def _system_packages(engine: str) -> None:
    """Debian packages that no wheel brings: venv for this Python, and for vLLM on the CPU libnuma."""
    missing = []
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        missing.append("python3-venv")
    if engine == "cpu":
        try:
            ctypes.CDLL("libnuma.so.1")  # where this Python looks, so that conda's counts too
        except OSError:
            missing.append("libnuma1")
    system(missing)


def system(missing: list[str]) -> None:
    """Install Debian packages, or say how."""
    if not missing:
        return
    command = f"apt-get install -y {' '.join(missing)}"
    if os.geteuid() or not shutil.which("apt-get"):
        _fail(f"this machine lacks {', '.join(missing)}", f"sudo {command}")
    _say(command)
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    _run(["apt-get", "update", "-qq"], env=quiet, check=False)
    _run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], env=quiet, stdout=subprocess.DEVNULL)


def _cpu_torch(python: str, pin: str) -> None:
    """torch for the CPU: a wheel pip has at hand, else PyTorch's CPU index, else the larger default build."""
    report = subprocess.run(
        [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--dry-run", "--no-deps", "--report", "-",
         pin], capture_output=True, text=True)
    if report.returncode == 0 and report.stdout.strip():
        found = json.loads(report.stdout)["install"]
        if not found:
            return  # installed already
        if found[0]["download_info"]["url"].startswith("file:"):
            _run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", pin])
            return
    if _uv(python, "--torch-backend", "cpu", pin, check=False):
        return
    _say("PyTorch's CPU index is out of reach: taking the default build, which is larger and serves as well")
    _uv(python, pin)


def _uv(python: str, *arguments: str, check: bool = True) -> bool:
    command = [python, "-m", "uv", "pip", "install", "-q", "--python", python, *arguments]
    return _run(command, check=check, env=os.environ | {"UV_HTTP_TIMEOUT": "120"})


def _run(command: list[str], check: bool = True, **options) -> bool:
    done = subprocess.run(command, **options).returncode == 0
    if check and not done:
        _fail(f"failed: {' '.join(command)}",
              "read the message above; usual causes are a full disk and a lost connection; the same command resumes")
    return done


def _say(text: str) -> None:
    print(f"[setup] {text}", flush=True)


def _fail(problem: str, remedy: str) -> None:
    sys.exit(f"[setup] {problem}\n  Remedy: {remedy}")


if __name__ == "__main__":
    if len(sys.argv) > 2 or (len(sys.argv) == 2 and sys.argv[1] not in {*ENGINES, "chromium"}):
        sys.exit(__doc__)
    if sys.argv[1:] == ["chromium"]:
        system([] if shutil.which("chromium") else ["chromium", "fonts-dejavu-core"])
    else:
        main(sys.argv[1] if len(sys.argv) == 2 else default())
