"""The runs a notebook needs: every combination of its axes; run what is missing, read all as tidy frames."""

import difflib
import functools
import hashlib
import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pandas as pd

from asu import engines, load, models, paths, runs
from asu.engines import base
from asu.engines.server import Server
from asu.errors import AsuError
from asu.progress import Progress, clock_text
from asu.specs import EngineOptions, RunSpec, canonical, parse

_OPTIONS = tuple(EngineOptions.model_fields)
_SAMPLING = ("temperature", "top_p", "budget", "logprobs")
_PLAIN = ("engine", "model", "task", "load", "problems", "repeats", "together", "seed", "lengths", "trial", "prefix")
_BY_TASK = ("problems", "repeats", "budget", "lengths")

START_S = {True: 10.0, False: 60.0}  # a server's start: of a miniature, of a large model
# Where nothing like it was measured yet, on two cores: tokens a second, of thinking and of plain models a request. Of
# miniatures; of others by a 0.5 B model, 96 tokens a second with 32 in flight.
_GUESS = {True: (2000.0, 400.0, 40.0), False: (96.0, 1500.0, 285.0)}

Group = list[RunSpec]


def _axis(name: str) -> str:
    """The field an axis sets, in singular or plural; a misspelt one is an error naming the nearest."""
    known = {*_PLAIN, *_SAMPLING, *_OPTIONS}
    spellings = known | {f"{field}s" for field in known}
    if name in known:
        return name
    if name in spellings:
        return name[:-1]
    near = difflib.get_close_matches(name, sorted(spellings), 1)
    raise AsuError(f"a study has no axis {name!r}", (f"did you mean {near[0]!r}? " if near else "") +
                   f"axes: {', '.join(sorted(known))}, each also in the plural with a list")


def _specs(axes: dict) -> list[RunSpec]:
    """The product of all axes in the order they are given, validated."""
    values = {}
    for name, value in axes.items():
        field = _axis(name)
        if field in values:
            raise AsuError(f"axis {field!r} is given twice", "keep the singular or the plural")
        values[field] = list(value) if isinstance(value, list | tuple) else [value]
        if not values[field]:
            raise AsuError(f"axis {name!r} is an empty list", "give it at least one value")
    for needed in ("model", "task"):
        if needed not in values:
            raise AsuError(f"a study needs {needed}s", f"add {needed}s=[...]")
    found = []
    for combination in itertools.product(*values.values()):
        chosen = dict(zip(values, combination, strict=True))
        known = models.CATALOGUE.get(chosen["model"])
        for field in _BY_TASK:
            if isinstance(chosen.get(field), dict):
                chosen[field] = _picked(chosen[field], chosen["task"], known and known.role, field)
        if chosen.get("lengths"):
            chosen["lengths"] = chosen["lengths"].format(model=known and known.lengths or chosen["model"],
                                                         task=chosen["task"])
        data = {field: chosen[field] for field in _PLAIN if field in chosen}
        data["options"] = {field: chosen[field] for field in _OPTIONS if field in chosen}
        if chosen.get("tensor_parallel") is None:
            data["options"]["tensor_parallel"] = known.gpus if known else 1
        data["sampling"] = {field: chosen[field] for field in _SAMPLING if field in chosen}
        found.append(parse(data, f"study of {chosen['model']} on {chosen['task']}"))
    return list(dict.fromkeys(found))


def _picked(values: dict, task: str, role: str | None, field: str):
    found = [values[key] for key in (task, role) if key in values]
    if not found:
        raise AsuError(f"{field} names no value for task {task!r}" + (f" nor for role {role!r}" if role else ""),
                       f"add it: {field}={{{task!r}: …}}")
    return found[0]


def local(groups: Iterable[Group], work: Callable[[Group], Iterator[Path]]) -> Iterator[Path]:
    """Work through the groups on this machine, one after the other. Another executor spreads them over many."""
    for group in groups:
        yield from work(group)


class Study:
    """Runs by their axes, each a value or a list: `Study(models=[...], tasks=[...], budgets=[256, 1024], seed=7)`.

    Axes: engine, model, task, load, problems, repeats, together, seed, trial, lengths, prefix, budget, temperature,
    top_p, logprobs, and every field of `specs.EngineOptions`; singular or plural. problems, repeats, budget and lengths
    may be given by task, {"mini-easy": 40}, or by role, {"RLLM": 1, "LLM": 4}.
    `records` (or the environment variable ASU_RECORDS) names published records in data/runs to read instead.
    """

    def __init__(self, *, records: str | None = None, store: runs.Store | None = None, **axes):
        self._setup(_specs(axes), records, store)

    @classmethod
    def of(cls, specs: Iterable[RunSpec], *, records: str | None = None, store: runs.Store | None = None) -> "Study":
        """A study of given specs."""
        study = cls.__new__(cls)
        study._setup(list(dict.fromkeys(specs)), records, store)
        return study

    def _setup(self, specs: list[RunSpec], records: str | None, store: runs.Store | None) -> None:
        self.specs = specs
        self._records = records or (None if store else os.environ.get("ASU_RECORDS")) or None
        if self._records and not (paths.PUBLISHED / self._records).is_dir():
            there = ", ".join(sorted(folder.name for folder in paths.PUBLISHED.glob("*/"))) or "none"
            raise AsuError(f"no published records {self._records!r}", f"use one of: {there}; or unset ASU_RECORDS")
        self.store = store or runs.Store(paths.PUBLISHED / self._records if self._records else None)

    def __add__(self, other: "Study") -> "Study":
        if self.store.root != other.store.root:
            raise AsuError(f"studies of {self.store.root} and {other.store.root} cannot be joined",
                           "give both the same records")
        return Study.of([*self.specs, *other.specs], records=self._records, store=self.store)

    def __len__(self) -> int:
        return len(self.specs)

    def where(self, **wanted) -> "Study":
        """The runs whose labels (`labels`, the columns of every frame) have these values: where(kv_pool_tokens=16384).

        None stands for what is left to the engine. AsuError for a label that does not exist or that no run has.
        """
        of = {spec: labels(spec) for spec in self.specs}
        for name in wanted:
            if any(name not in known for known in of.values()):
                raise AsuError(f"runs have no label {name!r}", f"use one of: {', '.join(next(iter(of.values())))}")
        chosen = [spec for spec, known in of.items()
                  if all((None if known[name] is pd.NA else known[name]) == value for name, value in wanted.items())]
        if not chosen:
            raise AsuError(f"no run has {', '.join(f'{name} {value!r}' for name, value in wanted.items())}",
                           "use values that the study was given")
        return Study.of(chosen, records=self._records, store=self.store)

    def _found(self) -> dict[RunSpec, Path | None]:
        """Folder of the complete run of each spec, None where there is none."""
        if self._records:
            complete = self.store.complete()
            return {spec: complete.get(canonical(spec.model_dump(mode="json"))) for spec in self.specs}
        return {spec: self.store.find(spec, runs.inputs(spec)) for spec in self.specs}

    def groups(self, specs: Iterable[RunSpec] | None = None) -> list[Group]:
        """Specs that share a server together, model by model, the cheapest first, so that a mistake shows early.

        What is compared is served close together: of a model first the servers whose runs are made again, then all that
        differ from them, then the runs made again (trial 1 and up) on servers of their own. So these are at least as
        far in time from the first ones as any run in between, and tell the machine's drift in full.
        """
        history = self.store.history()
        by_server: dict[tuple[bool, str, str], Group] = {}
        for spec in self.specs if specs is None else specs:
            by_server.setdefault(server_of(spec), []).append(spec)
        costs = {key: sum(estimate_s(spec, history) for spec in group) for key, group in by_server.items()}
        of_model: dict[str, float] = defaultdict(float)
        for key, group in by_server.items():
            of_model[group[0].model] += costs[key]

        def order(key: tuple[bool, str, str]) -> tuple:
            (again, *server), model = key, by_server[key][0].model
            return of_model[model], model, again, (True, *server) not in by_server, costs[key]

        return [by_server[key] for key in sorted(by_server, key=order)]

    def plan(self) -> pd.DataFrame:
        """One row per run: what it is, which server it shares, whether it is done, and how long it should take [s].

        `blocked` says why a run cannot be made or looked up on this machine (engine or weights missing), else None.
        """
        history, known, rows = self.store.history(), self.store.complete(), []
        number = {spec: index for index, group in enumerate(self.groups()) for spec in group}
        for spec in self.specs:
            try:
                models.get(spec.model)
                folder, blocked = known.get(canonical(spec.model_dump(mode="json"))), None
                if folder and not self._records:  # else a plan would ask the hub for what was never fetched
                    folder = self.store.find(spec, runs.inputs(spec))
                if folder is None and not self._records:
                    _check(spec)
            except AsuError as error:
                folder, blocked = None, error.problem
            rows.append({"run": spec.name, **labels(spec), "server": number[spec], "done": folder is not None,
                         "estimate_s": 0.0 if folder else estimate_s(spec, history), "blocked": blocked,
                         "folder": str(folder) if folder else None})
        return pd.DataFrame(rows)

    def estimate_s(self) -> float:
        """Time to make what is missing, server starts included [s]."""
        plan = self.plan()
        if plan.empty:
            return 0.0
        started = plan[~plan.done].drop_duplicates("server").model
        return float(plan.estimate_s.sum() + sum(map(_start_s, started)))

    def run(self, progress=None, *, server: Callable = Server, executor: Callable = local) -> "Study":
        """Make what is missing, a server started once for all runs that share it; complete runs are left as they are.

        Returns the study.
        """
        missing = [spec for spec, folder in self._found().items() if folder is None]
        if not missing:
            return self
        if self._records:
            raise self._missing(missing)
        for spec in missing:
            _check(spec)
            # An error in problems, lengths or arrivals shows now, not after a server's start.
            load.due_times(spec.load, len(runs.requests(spec)), spec.seed)
        progress = progress or Progress()
        history, groups = self.store.history(), self.groups(missing)
        progress.study_started([estimate_s(spec, history) for group in groups for spec in group],
                               [_start_s(group[0].model) for group in groups])
        for _ in executor(groups, functools.partial(self._work, progress=progress, server=server)):
            pass
        progress.study_finished()
        return self

    def _work(self, group: Group, progress, server: Callable) -> Iterator[Path]:
        """One server, all its runs."""
        first = group[0]
        key = hashlib.sha256(canonical(server_of(first)).encode()).hexdigest()[:8]
        log_path = self.store.root / "servers" / f"{first.engine}-{first.model}-{key}-{os.getpid()}.log"
        log_path.parent.mkdir(parents=True, exist_ok=True)
        progress.server_starting(f"{first.engine} with {first.model}")
        engine = engines.get(first.engine)
        with server(engine, models.get(first.model), first.options, log_path=log_path) as running:
            runs.warm_up(first, running)
            for spec in group:
                # else a run would profit from the prompts of the one before; where it cannot be emptied there is none
                if spec.options.prefix_caching and engine.reset_path is not None:
                    running.reset_prefix_cache()
                yield runs.execute(spec, running, self.store, runs.inputs(spec), progress)
        log_path.unlink(missing_ok=True)

    def _missing(self, missing: list[RunSpec]) -> AsuError:
        history = self.store.history()
        seconds = sum(estimate_s(spec, history) for spec in missing)
        seconds += sum(_start_s(model) for _, model in {(server_of(spec), spec.model) for spec in missing})
        where = f"records {self._records}" if self._records else "runs"
        named = missing[0].name + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
        unset = "unset ASU_RECORDS (or drop records=) and " if self._records else ""
        return AsuError(f"no complete run in {where} for {named}", f"{unset}make it: study.run() in the notebook, or "
                        f"python -m asu run; about {clock_text(seconds)}")

    def folders(self) -> dict[RunSpec, Path]:
        """Folder of every run; AsuError with the command and the time it takes if one is missing."""
        found = self._found()
        missing = [spec for spec, folder in found.items() if folder is None]
        if missing:
            raise self._missing(missing)
        return found

    def requests(self) -> pd.DataFrame:
        """One row per request of all runs, with the runs' labels."""
        return self._frame("requests")

    def events(self) -> pd.DataFrame:
        """One row per stream event of all runs, with the runs' labels."""
        return self._frame("events")

    def engine(self) -> pd.DataFrame:
        """Engine gauges over time of all runs, with the runs' labels."""
        return self._frame("engine")

    def host(self) -> pd.DataFrame:
        """Host and GPU gauges over time of all runs, with the runs' labels."""
        return self._frame("host")

    def _frame(self, name: str) -> pd.DataFrame:
        parts = []
        for spec, folder in self.folders().items():
            run = _read(folder)
            frame = getattr(run, name)
            actual = run.env["kv_pool_tokens"]
            joined = {"run": folder.name[:8], **labels(spec), "kv_pool_actual": pd.NA if actual is None else actual}
            new = pd.DataFrame({column: [value] * len(frame) for column, value in joined.items()}, index=frame.index)
            new = new.astype({"kv_pool_tokens": "Int64", "kv_pool_actual": "Int64"})
            parts.append(pd.concat([new, frame.drop(columns=[c for c in new if c in frame])], axis=1))
        if not parts:
            raise AsuError("the study has no runs", "give it models and tasks")
        return pd.concat(parts, ignore_index=True)

    def provenance(self) -> pd.DataFrame:
        """One row per run: where its numbers come from, its losses and its gaps."""
        rows = []
        for spec, folder in self.folders().items():
            env, found = _read(folder).env, env_inputs(_read(folder).env)
            lag = [session["loop_lag_ms"]["p99"] for session in env["sessions"] if session["loop_lag_ms"]]
            rows.append({"run": folder.name[:8], "model": spec.model, "task": spec.task, "load": spec.load.label,
                         "budget": spec.sampling.budget,
                         **found, "requests": len(_read(folder).requests), "failed": env["failed"],
                         "gap_tokens": env["gap_tokens"], "sessions": len(env["sessions"]),
                         "lag_p99_ms": max(lag, default=float("nan")), "started": env["sessions"][0]["started"]})
        return pd.DataFrame(rows)


def server_of(spec: RunSpec) -> tuple[bool, str, str]:
    """Runs share a server where this is equal: made again or not, what it is started with, and a run of its own.

    Of its own has to be the server of a run with prefix caching whose engine cannot empty its cache.
    """
    alone = spec.options.prefix_caching and engines.get(spec.engine).reset_path is None
    return spec.trial > 0, spec.server_key, canonical(spec.model_dump(mode="json")) if alone else ""


def _check(spec: RunSpec) -> None:
    """AsuError if the engine cannot do on this machine what the spec asks."""
    model = models.get(spec.model)
    engine = engines.get(spec.engine)
    engine.check(spec.options, model, base.source(model, spec.options))
    engine.check_sampling(spec.options, spec.sampling)


def servable(kv_caches: Iterable[str], **axes) -> tuple[list[str], str]:
    """Those of some KV formats that the engine takes on this machine, and a sentence on the others, "" where none are.

    axes: a study's other axes. Where the first format, the plain one, is refused too, the fault is not the formats':
    all are kept, and `Study.run` says what it is. Published records are read as they are.
    """
    asked = list(dict.fromkeys(kv_caches))
    refused = {} if os.environ.get("ASU_RECORDS") else {
        name: why for name in asked if (why := _refusal(Study(kv_cache=name, **axes).specs[0]))}
    if not refused or asked[0] in refused:
        return asked, ""
    return [name for name in asked if name not in refused], f"Left out on this machine: {'; '.join(refused.values())}."


def _refusal(spec: RunSpec) -> str:
    """Why the engine cannot do on this machine what the spec asks, "" where it can."""
    try:
        _check(spec)
    except AsuError as error:
        return error.problem
    return ""


def _start_s(model: str) -> float:
    """How long a server with this model should take to start [s]."""
    return START_S[models.get(model).miniature]


def env_inputs(env: dict) -> dict:
    """Engine, machine and revision of a run, as printed."""
    found, machine = env["inputs"], env["inputs"]["machine"]
    git = env["sessions"][-1]["git"]
    revision = (git["revision"] or "unknown")[:8] + ("+" if git["dirty"] else "")
    gpus = [name if count == 1 else f"{count} × {name}" for name, count in Counter(machine["gpus"]).items()]
    where = f"{', '.join(gpus) or machine['cpu']}, {machine['cores']} cores"
    return {"engine": f"{found['engine']} {found['engine_version']}", "machine": where,
            "weights_digest": found["weights"][:12], "revision": revision}


def labels(spec: RunSpec) -> dict:
    """The columns a run's frames carry, so that one frame can hold many runs."""
    model, options = models.get(spec.model), spec.options
    return {"engine": spec.engine, "model": spec.model, "pair": model.pair, "size": model.size, "role": model.role,
            "task": spec.task, "load": spec.load.label, "budget": spec.sampling.budget,
            "kv_pool_tokens": pd.NA if options.kv_pool_tokens is None else options.kv_pool_tokens,
            "weights": options.weights, "kv_cache": options.kv_cache, "prefix_caching": options.prefix_caching,
            "speculation": options.speculation.label if options.speculation else "none",
            "max_requests": options.max_requests, "trial": spec.trial,
            "prefix": spec.prefix.label if spec.prefix else "none", "replay": _replay(spec)}


def _replay(spec: RunSpec) -> str:
    """What writes outputs of recorded lengths; "none" where the model ends them, or a prefix's runs set their own."""
    if spec.lengths is None or spec.prefix is not None:
        return "none"
    return "random weights" if spec.options.random_weights else "real weights"


def estimate_s(spec: RunSpec, history: list[tuple[RunSpec, dict]]) -> float:
    """How long a run should take [s]: by the rate of the most similar complete run, else by a rule of thumb.

    A large model's rule is the rate of published runs.
    """
    from asu import cost  # here because it reads what studies made

    count = (spec.problems or 100) * spec.repeats
    alike = ("model", "task", "engine", "load", "sampling", "options")
    near = max(((sum(getattr(past, name) == getattr(spec, name) for name in alike), done) for past, done in history
                if past.model == spec.model), key=lambda pair: pair[0], default=None)
    if near:
        estimate = count * near[1]["seconds"] / near[1]["requests"]
    elif cost.large(spec) and cost.measured():
        estimate = cost.seconds(spec)
    else:
        model = models.get(spec.model)
        rate, thinking, plain = _GUESS[model.miniature]
        estimate = count * min(spec.sampling.budget, thinking if model.thinks else plain) / rate
    arrivals = count / spec.load.rate if spec.load.kind == "gamma" else 0.0
    return max(estimate, arrivals)


def _read(folder: Path) -> runs.Run:
    """A run's frames, read once as long as the folder stays as it is."""
    try:
        mark = (folder / "DONE").stat().st_mtime_ns
    except OSError as error:
        raise AsuError(f"{folder} is gone", "run again") from error
    return _read_at(folder, mark)


@functools.lru_cache(maxsize=256)
def _read_at(folder: Path, _mark: int) -> runs.Run:
    return runs.read(folder)
