"""HTML: figures, tables, model text, and the pages of the report. Everything that is text is escaped here."""

import functools
import io
import math
import re
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

import jinja2
import nbformat
import pandas as pd
from matplotlib.figure import Figure
from pygments.formatters import HtmlFormatter

from asu import columns, style
from asu.errors import AsuError
from asu.metrics import METRICS
from asu.stats import Estimate

TEMPLATES = Path(__file__).parent / "templates"


@style.styled
def svg(figure: Figure, name: str, alt: str) -> str:
    """The figure as one <svg> element, the same bytes for the same figure; its ids are its own, so pages hold many."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text[text.index("<svg"):], count=1, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(xlink:href="|url\()#', rf"\1#{name}-", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1).strip() + "\n"


def figure(drawing: str, name: str, caption: str) -> str:
    """<figure> around an svg; scales down with its column, never up."""
    width = re.search(r'width="([\d.]+)pt" ', drawing)
    drawing = re.sub(r' (width|height)="[\d.]+pt"', "", drawing, count=2)
    room = f"max-width:{float(width[1]) * 4 / 3 * 1.15:.0f}px;" if width else ""
    drawing = drawing.replace("<svg ", f'<svg style="width:100%;{room}height:auto;background:#fff" ', 1)
    return f'<figure id="figure-{name}">\n{drawing}<figcaption>{escape(caption)}</figcaption>\n</figure>'


def number(value: float) -> str:
    """Three significant digits, thousands apart, never an exponent from a millionth up; a dash where unknown."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if pd.isna(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if isinstance(value, int) or float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}".replace("-", "−")
    decimals = 2 - math.floor(math.log10(abs(value)))
    text = f"{value:.2e}" if decimals > 8 else f"{value:,.{max(0, decimals)}f}"
    return text.replace("-", "−")


def interval(value: float, lo: float, hi: float) -> str:
    """"value [lo, hi]", all with the digits that the widest of them needs."""
    return str(Estimate(float(value), float(lo), float(hi))).replace("-", "−")


def _cell(value) -> tuple[str, bool]:
    """(text, is a number) of one table cell."""
    if isinstance(value, Estimate):
        return str(value).replace("-", "−"), True
    if value is None or value is pd.NA:
        return "–", False
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool | int | float):
        return number(value), not isinstance(value, bool)
    return str(value), False


def table(frame: pd.DataFrame, caption: str) -> str:
    """Escaped table; columns value, lo, hi become one; numbers to the right; scrolls sideways where it is too wide."""
    if {"value", "lo", "hi"} <= set(frame.columns):
        place = frame.columns.get_loc("value")
        merged = [interval(*row) for row in frame[["value", "lo", "hi"]].itertuples(index=False)]
        frame = frame.drop(columns=["value", "lo", "hi"])
        frame.insert(min(place, frame.shape[1]), "value [95 % interval]", merged)
    cells = [[_cell(value) for value in row] for row in frame.itertuples(index=False)]
    right = [bool(cells) and any(row[j][1] for row in cells) for j in range(frame.shape[1])]

    def tag(kind: str, j: int, text: str) -> str:
        return f'<{kind}{" class=number" if right[j] else ""}>{escape(text)}</{kind}>'

    head = "".join(tag("th", j, str(name)) for j, name in enumerate(frame.columns))
    rows = "\n".join("<tr>" + "".join(tag("td", j, text) for j, (text, _) in enumerate(row)) + "</tr>" for row in cells)
    return (f'<div class="scroll"><table>\n<caption>{escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n'
            f"<tbody>\n{rows}\n</tbody></table></div>")


def folded(summary: str, body: str) -> str:
    """`body`, which is markup, behind a line that opens it."""
    return f'<details class="folded"><summary>{escape(summary)}</summary>\n{body}\n</details>'


def text(words: str) -> str:
    """Words of a model, shown as they are: never markup."""
    return f'<pre class="model">{escape(words)}</pre>'


def note(words: str) -> str:
    """A sentence that stands out: what to do with the numbers."""
    return f'<p class="note">{escape(words)}</p>'


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True,
                              lstrip_blocks=True, undefined=jinja2.StrictUndefined)


@functools.cache
def _code_css() -> str:
    light, dark = (HtmlFormatter(style=name, nobackground=True).get_style_defs(".highlight")
                   for name in ("friendly", "github-dark"))
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}"


def page(title: str, body: str, links: Iterable[tuple[str, str, str]],
         provenance: Mapping[str, str] | None = None) -> str:
    """A whole page. links: (relation, href, text); provenance: at the top, folded, its first values in the open."""
    provenance = dict(provenance or {})
    return _environment().get_template("page.html.j2").render(
        title=title, body=body, links=list(links), provenance=provenance,
        provenance_line=" · ".join(list(provenance.values())[:4]),
        css=(TEMPLATES / "page.css").read_text(), code_css=_code_css())


def index(**values) -> str:
    """Body of the index page; values are those of templates/index_body.html.j2."""
    return _environment().get_template("index_body.html.j2").render(**values)


def columns_page() -> str:
    """Body of the page that says what every column and metric means."""
    return _environment().get_template("columns_body.html.j2").render(frames=columns.FRAMES, metrics=METRICS.values())


def notebook_body(notebook: Path) -> str:
    """An executed notebook as the body of a page."""
    from nbconvert import HTMLExporter  # a second to import, and only builds need it

    exporter = HTMLExporter(template_name="asu", extra_template_basedirs=[str(TEMPLATES)],
                            exclude_input_prompt=True, exclude_output_prompt=True)
    return exporter.from_notebook_node(read(notebook))[0]


def read(notebook: Path) -> nbformat.NotebookNode:
    """A notebook file, or an AsuError that names it."""
    try:
        return nbformat.read(notebook, as_version=4)
    except (OSError, ValueError, nbformat.ValidationError) as error:
        raise AsuError(f"{notebook} is not a readable notebook ({error})",
                       f"restore it: git checkout {notebook}") from error


def headline(notebook: nbformat.NotebookNode) -> tuple[str, str]:
    """(title, first paragraph) of a notebook's opening prose, without markup."""
    opening = next((cell.source for cell in notebook.cells if cell.cell_type == "markdown"), "")
    lines = opening.strip().splitlines() or [""]
    paragraph = " ".join(lines[1:]).strip()
    return lines[0].lstrip("# ").strip(), re.sub(r"\[([^]]*)\]\([^)]*\)|[*`_]{1,2}", r"\1", paragraph)


def front(title: str, first: str, profiles: list[str]) -> str:
    """The page one folder above the reports: it opens the report of profile `first` and links to the others."""
    links = "".join(f'<li><a href="{escape(name)}/index.html">{escape(name)}</a></li>' for name in profiles)
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
            f'<meta http-equiv="refresh" content="0; url={escape(first)}/index.html"></head>'
            f"<body><p>Reports:</p><ul>{links}</ul></body></html>\n")
