"""Every location the project reads or writes."""

import os
from pathlib import Path

ROOT = Path(os.environ.get("ASU_ROOT", Path(__file__).resolve().parents[2]))

NOTEBOOKS = ROOT / "notebooks"
PROFILES = NOTEBOOKS / "profiles"
LOCKS = ROOT / "lib" / "locks"
DATA = ROOT / "data"
PROBLEMS = DATA / "problems"
MODELS = DATA / "models"
LENGTHS = DATA / "lengths"
TRACES = DATA / "traces"
PUBLISHED = DATA / "runs"
FIGURES = ROOT / "figures"

# Build outputs, ignored by git; ASU_OUTPUT moves both (a scratch disk, a test's temporary folder).
OUTPUT = Path(os.environ.get("ASU_OUTPUT", ROOT))
RUNS = OUTPUT / "runs"
REPORTS = OUTPUT / "reports"
