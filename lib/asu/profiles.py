"""Profiles: every parameter of every run, and the studies that the notebooks make of them."""

import ast
import difflib
import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from asu import paths
from asu.errors import AsuError
from asu.study import Study


@dataclass(frozen=True)
class Profile:
    """notebooks/profiles/<name>.yaml: which notebooks it has, and their parameters that differ from the defaults.

    records: published records in data/runs that it renders, instead of runs of this machine; None where it makes runs.
    """

    name: str
    description: str
    notebooks: dict[str, dict]
    records: str | None = None

    def parameters(self, notebook: str) -> dict:
        """Overrides of one notebook; AsuError if the profile does not have it."""
        if notebook not in self.notebooks:
            raise AsuError(f"profile {self.name} has no notebook {notebook!r}",
                           hint(notebook, self.notebooks) + f"it has: {', '.join(self.notebooks)}")
        return self.notebooks[notebook]


def hint(word: str, known) -> str:
    """"did you mean …? " or nothing."""
    near = difflib.get_close_matches(word, [str(name) for name in known], 1)
    return f"did you mean {near[0]!r}? " if near else ""


def names() -> list[str]:
    """All profiles there are."""
    return sorted(file.stem for file in paths.PROFILES.glob("*.yaml"))


def load(name: str) -> Profile:
    """The profile called `name`, checked against the notebooks' parameter cells; AsuError for anything misspelt."""
    path = paths.PROFILES / f"{name}.yaml"
    if not path.is_file():
        raise AsuError(f"unknown profile {name!r}", hint(name, names()) + f"there are: {', '.join(names()) or 'none'}")
    try:
        data = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise AsuError(f"{path} is not YAML: {error}", "correct the line it names") from error
    if not isinstance(data, dict) or data.keys() - {"records"} != {"profile", "description", "notebooks"}:
        raise AsuError(f"{path} does not hold exactly profile, description and notebooks, and perhaps records",
                       "write these three, as the other profiles do")
    if data["profile"] != name:
        raise AsuError(f"{path} calls itself {data['profile']!r}", f"write profile: {name}")
    if not isinstance(data["notebooks"], dict):
        raise AsuError(f"{path}: notebooks is no mapping", "write a notebook's name, a colon, and its parameters below")
    profile = Profile(name, data["description"], {stem: given or {} for stem, given in data["notebooks"].items()},
                      data.get("records"))
    for notebook, given in profile.notebooks.items():
        _check(given, parameters(notebook), f"{path.name}, {notebook}")
    return profile


def _check(given: dict, defaults: dict, where: str) -> None:
    for name, value in given.items():
        if name not in defaults:
            raise AsuError(f"{where}: unknown parameter {name!r}",
                           hint(name, defaults) + f"the notebook has: {', '.join(defaults)}")
        if not _same_type(value, defaults[name]):
            number = isinstance(value, str) and "e" in value.lower() and _is_number(value)
            raise AsuError(f"{where}: {name} is {value!r}, not {_type(defaults[name])} as its default is",
                           "write the number with a dot, as 1.0e-3: YAML reads 1e-3 as text" if number
                           else f"give {_type(defaults[name])}")


def _same_type(value, default) -> bool:
    """Whether `value` may stand for `default`: whole numbers pass as decimals; None stands for all and all for None."""
    if default is None or value is None:
        return True
    if isinstance(value, bool) or isinstance(default, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    if isinstance(default, list) and isinstance(value, list):
        return not default or all(any(_same_type(item, other) for other in default) for item in value)
    return type(value) is type(default)


def _type(value) -> str:
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list",
             dict: "a mapping"}
    inner = " or ".join(sorted({_type(item) for item in value})) if isinstance(value, list) else ""
    return words.get(type(value), "a value") + (f", each item {inner}," if inner else "")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def notebook_path(notebook: str) -> Path:
    """Where a notebook is, by its stem; AsuError naming the nearest."""
    path = paths.NOTEBOOKS / f"{notebook}.ipynb"
    if not path.is_file():
        there = sorted(file.stem for file in paths.NOTEBOOKS.glob("*.ipynb"))
        raise AsuError(f"no notebook {notebook!r} in {paths.NOTEBOOKS}",
                       hint(notebook, there) + f"there are: {', '.join(there)}")
    return path


def _code(notebook: str) -> list[tuple[set[str], str]]:
    """(tags, source) of every code cell."""
    path = notebook_path(notebook)
    try:
        cells = json.loads(path.read_text())["cells"]
    except (ValueError, KeyError) as error:
        raise AsuError(f"{path} is not a notebook ({error})", f"restore it: git checkout {path}") from error
    return [(set(cell["metadata"].get("tags", [])), "".join(cell["source"]))
            for cell in cells if cell["cell_type"] == "code"]


def parameters(notebook: str) -> dict:
    """Names and default values of the notebook's cell tagged `parameters`."""
    cells = [source for tags, source in _code(notebook) if "parameters" in tags]
    if len(cells) != 1:
        raise AsuError(f"{notebook} has {len(cells)} cells tagged 'parameters'", "tag exactly one")
    try:
        return {statement.targets[0].id: ast.literal_eval(statement.value) for statement in ast.parse(cells[0]).body}
    except (AttributeError, ValueError, SyntaxError) as error:
        raise AsuError(f"the parameters cell of {notebook} holds more than NAME = literal ({error})",
                       "write one literal per line; derive values in the next cell") from error


def study_of(notebook: str, profile: str) -> Study:
    """The notebook's study under a profile: its imports, parameters and study cells are executed here, nothing else.

    Empty for a notebook without a cell tagged `study` (one that only reads what others recorded).
    """
    overrides = load(profile).parameters(notebook)
    namespace: dict = {"__name__": "__main__"}
    seen_parameters = False
    for number, (tags, source) in enumerate(_code(notebook), 1):
        if seen_parameters and "study" not in tags:
            continue
        try:
            exec(compile(source, f"{notebook}, code cell {number}", "exec"), namespace)
        except AsuError:
            raise
        except Exception as error:
            raise AsuError(f"{notebook}, code cell {number}: {type(error).__name__}: {error}",
                           "correct the cell; run the notebook to see it fail") from error
        if "parameters" in tags:
            namespace |= overrides
            seen_parameters = True
        if "study" in tags:
            if not isinstance(namespace.get("study"), Study):
                raise AsuError(f"the study cell of {notebook} makes no `study`", "write study = Study(...) in it")
            return namespace["study"]
    return Study.of([])
