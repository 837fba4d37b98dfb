"""The house rules of notebooks, checked without running them; and the checker itself, on good and bad ones."""

import ast
import json
import re
import statistics
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import nbformat
import pytest
from asu import paths, profiles

ALLOWED_IMPORTS = {"asu", "pandas", "numpy"}
LONGEST_CELL, MEDIAN_CELL = 15, 4
PARAMETER = re.compile(r"[A-Z][A-Z0-9_]* = (?P<value>[^=|#]+?)  # [^=|\[\]]+ \[[^=|\[\]]+\]")


class Book:
    """A notebook as the rules see it."""

    def __init__(self, path: Path):
        self.path = path
        self.node = nbformat.read(path, as_version=4)
        self.cells = self.node.cells
        self.code = [cell for cell in self.cells if cell.cell_type == "code"]
        self.prose = [cell for cell in self.cells if cell.cell_type == "markdown"]

    @cached_property
    def trees(self) -> list[ast.Module]:
        return [ast.parse(cell.source) for cell in self.code]

    def nodes(self, *kinds: type) -> Iterator[ast.AST]:
        for tree in self.trees:
            yield from (node for node in ast.walk(tree) if isinstance(node, kinds))

    def tagged(self, tag: str) -> list[int]:
        """Places among the code cells of those with a tag."""
        return [place for place, cell in enumerate(self.code) if tag in cell.metadata.get("tags", [])]

    @property
    def reads_only(self) -> bool:
        """Whether it makes no runs but reads what other notebooks recorded."""
        return any(called(node) == "report.numbers" for node in self.nodes(ast.Call))


def called(node: ast.AST) -> str:
    """Dotted name of what a call calls, or ""."""
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def parses(book: Book) -> Iterator[str]:
    for place, cell in enumerate(book.code, 1):
        if re.search(r"^\s*[%!?]|get_ipython", cell.source, re.MULTILINE):
            yield f"code cell {place} holds a magic or a shell command"
            continue
        try:
            ast.parse(cell.source)
        except SyntaxError as error:
            yield f"code cell {place} is not Python: {error}"


def is_stripped(book: Book) -> Iterator[str]:
    if any(cell.outputs or cell.execution_count for cell in book.code):
        yield "it holds outputs or execution counts: strip it"
    if book.node.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "its kernel is not python3"
    if extra := set(book.node.metadata) - {"kernelspec", "language_info"}:
        yield f"it holds metadata {sorted(extra)}"
    for cell in book.cells:
        if extra := set(cell.metadata) - {"tags"}:
            yield f"a cell holds metadata {sorted(extra)}"


def is_short(book: Book) -> Iterator[str]:
    sizes = [len([line for line in cell.source.splitlines() if line.strip()]) for cell in book.code]
    if sizes and max(sizes) > LONGEST_CELL:
        yield f"a code cell has {max(sizes)} lines, more than {LONGEST_CELL}"
    if sizes and statistics.median(sizes) > MEDIAN_CELL:
        yield f"the median code cell has {statistics.median(sizes)} lines, more than {MEDIAN_CELL}"
    if 0 in sizes:
        yield "a code cell is empty"


def only_calls(book: Book) -> Iterator[str]:
    forbidden = {ast.FunctionDef: "def", ast.AsyncFunctionDef: "def", ast.ClassDef: "class", ast.Try: "try",
                 ast.If: "if", ast.While: "while"}
    for node in book.nodes(*forbidden):
        yield f"a cell holds `{forbidden[type(node)]}`: move it to the library"
    for tree in book.trees:
        if any(isinstance(statement, ast.Expr) for statement in tree.body[:-1]):
            yield "a cell shows its last expression alone, and drops another before it: give it a cell of its own"
    for node in book.nodes(ast.Attribute):
        if node.attr == "rcParams" or ast.unparse(node) == "sys.path":
            yield f"a cell touches {node.attr}"


def imports_little(book: Book) -> Iterator[str]:
    yield from _imports(book, ALLOWED_IMPORTS)


def _imports(book: Book, allowed: set[str]) -> Iterator[str]:
    for node in book.nodes(ast.Import, ast.ImportFrom):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        for name in names:
            if name.split(".")[0] not in allowed:
                yield f"it imports {name}; allowed are {', '.join(sorted(allowed))}"


def is_plain_prose(book: Book) -> Iterator[str]:
    for cell in book.prose:
        words = re.sub(r"```.*?```|`[^`]*`", "", cell.source, flags=re.DOTALL)
        if re.search(r"</?[a-zA-Z][^>]*>", words):
            yield f"prose holds HTML: {cell.source[:40]!r}"
        if re.search(r"!\[[^]]*\]\(", words):
            yield "prose embeds a picture: show figures with report.show"
        if "$" in words:
            yield "prose holds TeX, which needs a script from elsewhere to be read: write it in words or code"


def is_named(book: Book) -> Iterator[str]:
    if not re.fullmatch(r"\d\d_[a-z0-9]+(_[a-z0-9]+)*", book.path.stem):
        yield "its name is not NN_noun_phrase"


def opens_with_a_question(book: Book) -> Iterator[str]:
    lines = book.cells[0].source.strip().splitlines() if book.cells else []
    if not lines or book.cells[0].cell_type != "markdown" or not re.fullmatch(r"# .+\?", lines[0]):
        yield "it does not open with a title that is a question"
    elif len([line for line in lines[1:] if line.strip()]) != 3:
        yield "its title is not followed by three lines: answer, needs and cost, what it makes"
    if sum(line.startswith("# ") for cell in book.prose for line in cell.source.splitlines()) != 1:
        yield "it has more than one title, or none"


def is_in_order(book: Book) -> Iterator[str]:
    if not book.trees or not all(isinstance(node, ast.Import | ast.ImportFrom) for node in book.trees[0].body):
        yield "its first code cell is not the imports"
    if any(isinstance(node, ast.Import | ast.ImportFrom) for tree in book.trees[1:] for node in ast.walk(tree)):
        yield "it imports after its first code cell"
    if book.tagged("parameters") != [1]:
        yield "its second code cell, and no other, must be tagged parameters"
    if book.reads_only:
        return
    if book.tagged("study") != [2]:
        yield "its third code cell, and no other, must be tagged study"
    elif not any(called(node).endswith(".provenance") for tree in book.trees[2:4] for node in ast.walk(tree)):
        yield "its study is not followed by its provenance table"


def declares_parameters(book: Book) -> Iterator[str]:
    for place in book.tagged("parameters"):
        for line in book.code[place].source.splitlines():
            found = PARAMETER.fullmatch(line)
            if not found:
                yield f"parameter line is not `NAME = literal  # meaning [unit]`: {line!r}"
                continue
            try:
                json.dumps(ast.literal_eval(found["value"]), allow_nan=False)
            except (ValueError, TypeError, SyntaxError):
                yield f"parameter is not a literal of a JSON type: {line!r}"
            if found["value"].strip().startswith("("):
                yield f"parameter is a tuple, which JSON does not have: {line!r}"


def shows_with_words(book: Book) -> Iterator[str]:
    shown = [node for node in book.nodes(ast.Call) if called(node) == "report.show"]
    if not shown:
        yield "it shows no figure"
    for node in shown:
        given = dict(zip(("fig", "name", "caption", "alt"), node.args, strict=False))
        given |= {keyword.arg: keyword.value for keyword in node.keywords}
        for name, least in (("caption", 20), ("alt", 30)):
            if name not in given or len(_words(given[name])) < least:
                yield f"a figure's {name} is missing or says too little: {ast.unparse(node)[:60]}"
    for node in book.nodes(ast.Expr):
        if called(node.value).startswith("plots."):
            yield f"a figure is drawn but not shown with report.show: {ast.unparse(node)[:60]}"


def _words(node: ast.AST) -> str:
    """The fixed words of a string or f-string; a computed one counts as said."""
    parts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    return "".join(parts) if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp) else "x" * 100


def argues(book: Book) -> Iterator[str]:
    shows = ["report.show(" in cell.source if cell.cell_type == "code" else None for cell in book.cells]
    for place, is_show in enumerate(shows):
        after = shows[place + 1:]
        if is_show and (None not in after or True in after[:after.index(None)]):
            yield "a figure is not followed by prose that reads it"
    if not any(re.search(r"^#+ .*limit", cell.source, re.MULTILINE | re.IGNORECASE) for cell in book.prose):
        yield "no heading names its limits"


def ends_with_a_record(book: Book) -> Iterator[str]:
    if not book.cells or book.cells[-1].cell_type != "code":
        yield "its last cell is not code"
        return
    calls = [node for node in ast.walk(book.trees[-1]) if called(node) == "report.record"]
    if len(calls) != 1:
        yield "its last cell does not record numbers"
    elif not calls[0].args or ast.unparse(calls[0].args[0]) != repr(book.path.stem):
        yield f"it does not record under its own name, {book.path.stem}"


def imports_little_but_widgets(book: Book) -> Iterator[str]:
    yield from _imports(book, ALLOWED_IMPORTS | {"ipywidgets"})


Rule = Callable[[Book], Iterator[str]]
EVERY: list[Rule] = [is_stripped, is_short, only_calls, is_plain_prose]
STUDY: list[Rule] = [*EVERY, imports_little, is_named, opens_with_a_question, is_in_order, declares_parameters,
                     shows_with_words, argues, ends_with_a_record]
# explore.ipynb is a tool, not an argument: it asks no question, has no parameters and records nothing.
EXPLORE: list[Rule] = [*EVERY, imports_little_but_widgets]


def problems(path: Path) -> list[str]:
    """Everything the rules have against a notebook."""
    book = Book(path)
    if broken := list(parses(book)):
        return broken
    return [problem for rule in (EXPLORE if path.stem == "explore" else STUDY) for problem in rule(book)]


NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("*.ipynb"))
NEED_A_GPU = {"11_engine_against_engine"}  # LMDeploy has no build for the CPU


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_keeps_the_house_rules(path):
    assert problems(path) == []


@pytest.mark.parametrize("name", profiles.names())
def test_profile_fits_the_notebooks(name):
    profiles.load(name)


@pytest.mark.skipif(not NOTEBOOKS, reason="there are no notebooks")
def test_the_default_profile_has_every_notebook():
    assert set(profiles.load("embedded").notebooks) == {path.stem for path in NOTEBOOKS} - {"explore"} - NEED_A_GPU


# --- the checker itself ---------------------------------------------------------------------------------------------

GOOD = [
    ("md", "# Does it rise?\n\nYes, by a third.\n\nNeeds one server, two minutes.\n\nMakes one figure, one number."),
    ("code", "from asu import plots, report\nfrom asu.study import Study"),
    ("parameters", 'TASKS = ["mini-easy"]  # problem sets [names]\nBUDGET = 256  # most output tokens [tok]\n'
                   "SHARE = 1.0e-3  # share let go [1]"),
    ("study", "study = Study(models=['mini-4m-think'], tasks=TASKS, budgets=BUDGET).run()"),
    ("code", 'report.table(study.provenance(), "Where the numbers come from")'),
    ("md", "## What counts as rising\n\nA ratio `> 1`."),
    ("code", 'report.show(plots.kv_use_over_time(study.engine()), "rise",\n'
             '    caption="KV use over time, one panel a set.",\n'
             '    alt=f"Lines of {len(TASKS)} sets, each rising and falling once.")'),
    ("md", "It rises."),
    ("md", "## Limits\n\nOne machine."),
    ("code", 'report.record("01_rise", {"01.rise": 1.3})'),
]


def write(path: Path, cells, **metadata) -> Path:
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}} | metadata
    book = nbformat.v4.new_notebook(metadata=metadata)
    for kind, source in cells:
        cell = nbformat.v4.new_markdown_cell(source) if kind == "md" else nbformat.v4.new_code_cell(source)
        cell.metadata["tags"] = [kind] if kind in ("parameters", "study") else []
        if not cell.metadata["tags"]:
            del cell.metadata["tags"]
        book.cells.append(cell)
    nbformat.write(book, path)
    return path


def swap(place: int, *cells) -> list:
    return [*GOOD[:place], *cells, *GOOD[place + 1:]]


def test_a_good_notebook_has_no_problems(tmp_path):
    assert problems(write(tmp_path / "01_rise.ipynb", GOOD)) == []


def test_a_notebook_that_only_reads_numbers_needs_no_study(tmp_path):
    cells = swap(3, ("code", "numbers = report.numbers()"))
    assert problems(write(tmp_path / "01_rise.ipynb", [*cells[:4], *cells[5:]])) == []


BAD = {
    "title is no question": (swap(0, ("md", "# It rises\n\na\n\nb\n\nc")), "question"),
    "two lines only": (swap(0, ("md", "# Does it rise?\n\na\n\nb")), "three lines"),
    "second title": (swap(7, ("md", "# Again?")), "more than one title"),
    "engine import": (swap(1, ("code", "import vllm\nfrom asu import plots, report")), "imports vllm"),
    "subprocess": (swap(1, ("code", "from subprocess import run\nfrom asu import report")), "imports subprocess"),
    "late import": (swap(4, ("code", "import numpy as np\nstudy.provenance()")), "after its first"),
    "no parameters": ([*GOOD[:2], *GOOD[3:]], "tagged parameters"),
    "parameters late": ([*GOOD[:2], GOOD[3], GOOD[2], *GOOD[4:]], "tagged parameters"),
    "no study": (swap(3, ("code", GOOD[3][1])), "tagged study"),
    "no provenance": ([*GOOD[:4], *GOOD[5:]], "provenance"),
    "no comment": (swap(2, ("parameters", "BUDGET = 256")), "parameter line"),
    "no unit": (swap(2, ("parameters", "BUDGET = 256  # most tokens")), "parameter line"),
    "second equals sign": (swap(2, ("parameters", "BUDGET = 256  # tokens, A = 1 [tok]")), "parameter line"),
    "bar": (swap(2, ("parameters", "BUDGET = 1 | 2  # tokens [tok]")), "parameter line"),
    "derived": (swap(2, ("parameters", "BUDGET = 2 * N  # tokens [tok]")), "not a literal"),
    "tuple": (swap(2, ("parameters", "BUDGETS = (1, 2)  # tokens [tok]")), "tuple"),
    "set": (swap(2, ("parameters", "BUDGETS = {1, 2}  # tokens [tok]")), "JSON"),
    "long cell": (swap(4, ("code", "\n".join(f"a{i} = {i}" for i in range(16)) + "\nstudy.provenance()")), "17 lines"),
    "long median": ([(kind, text + "\nx = 1" * 5 if kind in ("code", "study") else text) for kind, text in GOOD],
                    "median"),
    "shown in vain": (swap(4, ("code", "study.provenance()\nreport.table(study.provenance(), 'c')")), "drops another"),
    "def": (swap(4, ("code", "def f():\n    return study.provenance()")), "`def`"),
    "class": (swap(4, ("code", "class A:\n    x = study.provenance()")), "`class`"),
    "try": (swap(4, ("code", "try:\n    study.provenance()\nfinally:\n    x = 1")), "`try`"),
    "smoke branch": (swap(4, ("code", "if BUDGET > 1:\n    study.provenance()")), "`if`"),
    "magic": (swap(4, ("code", "%timeit study.provenance()")), "magic"),
    "shell": (swap(4, ("code", "!ls")), "magic"),
    "no Python": (swap(4, ("code", "study.provenance(")), "not Python"),
    "sys.path": (swap(4, ("code", "sys.path.append('lib')\nstudy.provenance()")), "touches path"),
    "rcParams": (swap(4, ("code", "matplotlib.rcParams['a'] = study.provenance()")), "rcParams"),
    "no alt": (swap(6, ("code", 'report.show(plots.a(study), "rise", caption="KV use over time, all sets.")')), "alt"),
    "short caption": (swap(6, ("code", 'report.show(plots.a(study), "a", "KV", "Lines of two sets, rising, falling")')),
                      "caption"),
    "bare figure": (swap(6, ("code", "plots.a(study)")), "not shown"),
    "unread figure": ([*GOOD[:7], GOOD[6], *GOOD[7:]], "reads it"),
    "no limits": ([*GOOD[:8], GOOD[9]], "limits"),
    "no record": (GOOD[:9], "last cell is not code"),
    "record of another": (swap(9, ("code", 'report.record("02_fall", {"a": 1})')), "own name"),
    "HTML": (swap(7, ("md", "It <b>rises</b>.")), "HTML"),
    "TeX": (swap(7, ("md", "It rises by $x$.")), "TeX"),
    "picture": (swap(7, ("md", "![rise](rise.png)")), "picture"),
}


@pytest.mark.parametrize("cells, message", BAD.values(), ids=BAD)
def test_a_bad_notebook_is_found_out(tmp_path, cells, message):
    found = problems(write(tmp_path / "01_rise.ipynb", cells))
    assert any(message in problem for problem in found), found


def test_names_outputs_kernels_and_metadata_are_found_out(tmp_path):
    assert any("NN_noun" in p for p in problems(write(tmp_path / "Rise.ipynb", GOOD)))
    assert any("metadata ['papermill']" in p for p in problems(write(tmp_path / "01_rise.ipynb", GOOD, papermill={})))
    other = {"name": "other", "display_name": "Other", "language": "python"}
    assert any("kernel" in p for p in problems(write(tmp_path / "01_rise.ipynb", GOOD, kernelspec=other)))
    path = write(tmp_path / "01_rise.ipynb", GOOD)
    book = nbformat.read(path, as_version=4)
    book.cells[1].outputs = [nbformat.v4.new_output("stream", text="x")]
    book.cells[2].metadata["collapsed"] = True
    nbformat.write(book, path)
    assert [p for p in problems(path)] == ["it holds outputs or execution counts: strip it",
                                           "a cell holds metadata ['collapsed']"]


def test_explore_is_a_tool_and_may_use_widgets(tmp_path):
    cells = [("md", "# Explore"), ("code", "import ipywidgets\nfrom asu import explore"), ("code", "explore.show()")]
    assert problems(write(tmp_path / "explore.ipynb", cells)) == []
    cells[1] = ("code", "import torch")
    assert any("imports torch" in p for p in problems(write(tmp_path / "explore.ipynb", cells)))
