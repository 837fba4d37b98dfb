"""HTML: figures, tables, model text, and the pages of the report. Everything that is text is escaped here."""

import functools
import io
import math
import re
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure
from pygments.formatters import HtmlFormatter

from asu import columns, style
from asu.errors import AsuError
from asu.metrics import METRICS
from asu.stats import Estimate

if TYPE_CHECKING:  # importing it compiles a grammar for seconds, which no notebook's kernel needs
    import nbformat

TEMPLATES = Path(__file__).parent / "templates"
MARKS = {"supported": "●", "undecided": "◆", "not supported": "✕"}
UNFOLDED_ROWS = 30  # a table of more rows is folded under its caption
_OF_CLAIMS = {"claim", "statement", "measured", "verdict", "reason", "paper"}


@style.styled
def svg(figure: Figure, name: str, alt: str) -> str:
    """The figure as one <svg> element, the same bytes for the same figure; its ids are its own, so pages hold many."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text[text.index("<svg"):], count=1, flags=re.DOTALL)
    # A glyph of a word is moved to the right alone: x says so in half the bytes. Indents and the font's name add none.
    text = re.sub(r'(<use xlink:href="#[^"]+") transform="translate\(([\d.]+) 0\)"/>', r'\1 x="\2"/>', text)
    text = re.sub(r"\n +", "\n", text).replace("DejaVuSans-", "")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(xlink:href="|url\()#', rf"\1#{name}-", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1).strip() + "\n"


def figure(drawing: str, name: str, caption: str) -> str:
    """<figure> around an svg; scales down with its column as long as its text stays legible, never up."""
    width = re.search(r'width="([\d.]+)pt" ', drawing)
    drawing = re.sub(r' (width|height)="[\d.]+pt"', "", drawing, count=2)
    room = f"--room:{float(width[1]) * 4 / 3 * 1.15:.0f}px;max-width:var(--room);" if width else ""
    drawing = drawing.replace("<svg ", f'<svg style="width:100%;{room}height:auto;background:#fff" ', 1)
    return (f'<figure id="figure-{name}">\n<div class="drawing">{drawing}</div>'
            f"<figcaption>{words(caption)}</figcaption>\n</figure>")


def words(sentence: str) -> str:
    """Escaped words of this study: names between backticks as code, hyphens before numbers as minus signs."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(minus(sentence)))


def minus(sentence: str) -> str:
    """A hyphen that starts a number becomes a minus sign; one inside a word or a date stays."""
    return re.sub(r"(?<![\w.)])-(?=\d)", "−", sentence)


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


def table(frame: pd.DataFrame, caption: str, *, fold: bool = True) -> str:
    """Escaped table; columns value, lo, hi become one; numbers to the right; scrolls sideways where it is too wide.

    A frame of `claims.decide` gets the layout that claims have everywhere; one of many rows is folded if it may be.
    """
    if _OF_CLAIMS <= set(frame.columns):
        return claims_table(frame, caption)
    if {"value", "lo", "hi"} <= set(frame.columns):
        place = frame.columns.get_loc("value")
        merged = [interval(*row) for row in frame[["value", "lo", "hi"]].itertuples(index=False)]
        frame = frame.drop(columns=["value", "lo", "hi"])
        frame.insert(min(place, frame.shape[1]), "value [95 % interval]", merged)
    cells = [[_cell(value) for value in row] for row in frame.itertuples(index=False)]
    right = [bool(cells) and any(row[j][1] for row in cells) for j in range(frame.shape[1])]

    def tag(kind: str, j: int, text: str) -> str:
        verbatim = str(frame.columns[j]).endswith("answer")  # what a model wrote is shown to the letter
        look = " class=number" if right[j] else " class=wrap" if len(text) > (40 if "[" in text else 26) else ""
        return f"<{kind}{look}>{escape(text) if verbatim else words(text)}</{kind}>"

    head = "".join(tag("th", j, str(name)) for j, name in enumerate(frame.columns))
    rows = "\n".join("<tr>" + "".join(tag("td", j, text) for j, (text, _) in enumerate(row)) + "</tr>" for row in cells)
    body = (f'<div class="scroll"><table class="data">\n<caption>{words(caption)}</caption>\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>")
    if not fold or len(frame) <= UNFOLDED_ROWS:
        return body
    return folded(f"{caption.rstrip('.')} ({len(frame)} rows)", body)


def claims_table(decided: pd.DataFrame, caption: str = "") -> str:
    """The verdicts on claims, of `claims.decide`; column page, where there is one, is what a claim's name links to."""
    rows = decided.to_dict("records")
    for row in rows:
        row |= {"mark": MARKS[row["verdict"]], "page": row.get("page", "")}
        notes = [f"compared {row['compared']}"] if row.get("compared", row["measured"]) != row["measured"] else []
        apart = [f"{name} {number(row[name])}" for name in ("ratio_to_paper", "minus_paper")
                 if not pd.isna(row.get(name, math.nan))]
        row["beside"] = "; ".join(notes + apart) if apart else ""
    return _environment().get_template("claims_table.html.j2").render(claims=rows, caption=caption)


def answer(decided: pd.DataFrame, guidance: str = "") -> str:
    """The box at the top of a page: what to do with a notebook's numbers, and the verdicts that they decide."""
    rows = [{**row, "mark": MARKS[row["verdict"]]} for row in decided.to_dict("records")]
    known = [row for row in rows if not pd.isna(row["value"])]
    return _environment().get_template("answer.html.j2").render(
        claims=known, unknown=[row["claim"] for row in rows if pd.isna(row["value"])], guidance=guidance)


def tally(verdicts: Iterable[str]) -> str:
    """"Of 51 claims 26 are supported, 20 undecided and 5 not supported"."""
    verdicts = list(verdicts)
    yes, open_, no = (verdicts.count(name) for name in MARKS)
    return f"Of {len(verdicts)} claims {yes} are supported, {open_} undecided and {no} not supported"


def folded(summary: str, body: str) -> str:
    """`body`, which is markup, behind a line that opens it."""
    return f'<details class="folded"><summary>{words(summary)}</summary>\n{body}\n</details>'


def text(written: str) -> str:
    """Words of a model, shown as they are: never markup."""
    return f'<pre class="model">{escape(written)}</pre>'


def note(sentence: str) -> str:
    """A sentence that stands out: what to do with the numbers."""
    return f'<p class="note">{words(sentence)}</p>'


@functools.cache
def _environment() -> jinja2.Environment:
    made = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True,
                              lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    made.filters |= {"minus": minus, "words": lambda sentence: Markup(words(sentence))}
    return made


@functools.cache
def _code_css() -> str:
    light, dark = (HtmlFormatter(style=name, nobackground=True).get_style_defs(".highlight")
                   for name in ("friendly", "github-dark"))
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}"


def page(title: str, body: str, links: Iterable[tuple[str, str, str]],
         provenance: Mapping[str, str] | None = None) -> str:
    """A whole page. links: (relation, href, text); provenance: at the top, folded, its first values in the open."""
    provenance = dict(provenance or {})
    line = [f"{name} {value}" if name in ("profile", "revision") else value
            for name, value in list(provenance.items())[:4]]
    return _environment().get_template("page.html.j2").render(
        title=title, body=body, links=list(links), provenance=provenance,
        provenance_line=" · ".join(line),
        css=(TEMPLATES / "page.css").read_text(), code_css=_code_css())


def index(**values) -> str:
    """Body of the index page; values are those of templates/index_body.html.j2."""
    return _environment().get_template("index_body.html.j2").render(**values)


def columns_page() -> str:
    """Body of the page that says what every column and metric means."""
    return _environment().get_template("columns_body.html.j2").render(frames=columns.FRAMES, metrics=METRICS.values())


def notebook_body(notebook: Path, answer: str = "") -> str:
    """An executed notebook as the body of a page; `answer`, which is markup, comes after its first paragraph."""
    from nbconvert import HTMLExporter  # a second to import, and only builds need it

    exporter = HTMLExporter(template_name="asu", extra_template_basedirs=[str(TEMPLATES)],
                            exclude_input_prompt=True, exclude_output_prompt=True)
    opening, end, rest = exporter.from_notebook_node(read(notebook))[0].partition("</p>")
    return opening + end + answer + rest


def read(notebook: Path) -> "nbformat.NotebookNode":
    """A notebook file, or an AsuError that names it."""
    import nbformat

    try:
        return nbformat.read(notebook, as_version=4)
    except (OSError, ValueError, nbformat.ValidationError) as error:
        raise AsuError(f"{notebook} is not a readable notebook ({error})",
                       f"restore it: git checkout {notebook}") from error


def headline(notebook: "nbformat.NotebookNode") -> tuple[str, str]:
    """(title, first paragraph) of a notebook's opening prose, without markup."""
    opening = next((cell.source for cell in notebook.cells if cell.cell_type == "markdown"), "")
    title, _, rest = opening.strip().partition("\n")
    paragraph = " ".join(rest.strip().split("\n\n")[0].split()).removeprefix("**Answer.** ")
    return title.lstrip("# ").strip(), re.sub(r"\[([^]]*)\]\([^)]*\)|[*`_]{1,2}", r"\1", paragraph)


def front(title: str, first: str, profiles: list[str]) -> str:
    """The page one folder above the reports: it opens the report of profile `first` and links to the others."""
    links = "".join(f'<li><a href="{escape(name)}/index.html">{escape(name)}</a></li>' for name in profiles)
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
            f'<meta http-equiv="refresh" content="0; url={escape(first)}/index.html"></head>'
            f"<body><p>Reports:</p><ul>{links}</ul></body></html>\n")
