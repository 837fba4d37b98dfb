"""What notebooks show and record, and the report made of them: built, rebuilt, read in a browser."""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import browser
import matplotlib
import nbformat
import numpy as np
import pandas as pd
import pytest
from asu import claims, pages, paths, report
from asu.errors import AsuError
from asu.stats import Estimate
from matplotlib.figure import Figure

HOSTILE = '<script>document.title = "taken"</script><img src=x onerror="document.title = 1"> & "quoted" </pre>'
ALT = 'Two lines, one "rising" & one <flat>'


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A root and an output folder of the test's own."""
    for name, place in {"NOTEBOOKS": "notebooks", "PROFILES": "notebooks/profiles", "REPORTS": "reports",
                        "FIGURES": "figures", "ROOT": ""}.items():
        monkeypatch.setattr(paths, name, tmp_path / place)
    monkeypatch.delenv("ASU_PROFILE", raising=False)
    paths.PROFILES.mkdir(parents=True)
    return tmp_path


def small_figure() -> Figure:
    figure = Figure(figsize=(4, 2))
    figure.subplots().plot([1, 2, 3])
    return figure


# --- in notebooks ---------------------------------------------------------------------------------------------------


def test_show_saves_the_drawing_and_returns_it_with_its_words(house):
    shown = report.show(small_figure(), "rising", "It <rises>.", ALT).data
    saved = (house / "reports/embedded/figures/rising.svg").read_text()
    assert saved.startswith("<svg") and saved.count("</svg>") == 1
    assert 'role="img"' in shown and "It &lt;rises&gt;." in shown
    assert 'aria-label="Two lines, one &quot;rising&quot; &amp; one &lt;flat&gt;"' in shown
    assert "max-width:" in shown and not re.search(r'<svg[^>]* width="', shown)


def test_the_same_figure_is_the_same_file_whatever_the_callers_settings(house):
    report.show(small_figure(), "a", "c", "a")
    first = (house / "reports/embedded/figures/a.svg").read_bytes()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": None}):
        report.show(small_figure(), "a", "c", "a")
    assert (house / "reports/embedded/figures/a.svg").read_bytes() == first


@pytest.mark.parametrize("change", [{"name": "Not A Name"}, {"name": "../up"}, {"caption": " "}, {"alt": ""}])
def test_show_wants_a_name_a_caption_and_an_alternative_text(house, change):
    with pytest.raises(AsuError, match="Remedy"):
        report.show(**{"fig": small_figure(), "name": "a", "caption": "c", "alt": "a"} | change)


def test_two_figures_of_a_page_share_no_ids(house):
    drawings = [report.show(small_figure(), name, "c", "a").data for name in ("one", "two")]
    first, second = (set(re.findall(r'\bid="([^"]+)"', drawing)) for drawing in drawings)
    assert first and not first & second


@pytest.mark.parametrize("value, printed", [
    (0, "0"), (0.0, "0"), (7, "7"), (12345, "12,345"), (1234.5, "1,234"), (0.12345, "0.123"), (-0.5, "−0.500"),
    (float("nan"), "–"), (math.inf, "∞"), (True, "yes"), (2e-9, "2.00e−09"), (99.96, "100.0")])
def test_numbers_are_printed_with_three_digits(value, printed):
    assert pages.number(value) == printed


def test_table_escapes_joins_intervals_and_aligns_numbers():
    frame = pd.DataFrame({"task": ["<b>a</b>"], "value": [1.5], "lo": [1.0], "hi": [2.25], "n": [np.int64(1200)],
                          "none": [None], "est": [Estimate(2.0, 1.0, 3.0, "s")]})
    html = report.table(frame, "A & B").data
    assert "&lt;b&gt;a&lt;/b&gt;" in html and "<b>" not in html and "A &amp; B" in html
    assert "<td>1.50 [1.00, 2.25]</td>" in html and "<td class=number>1,200</td>" in html
    assert "2.00 [1.00, 3.00] s" in html and "<td>–</td>" in html
    assert html.startswith('<div class="scroll">')


def provenance(runs: int, **differing) -> SimpleNamespace:
    rows = pd.DataFrame([{"run": f"r{i}", "requests": 100, "failed": 1, "gap_tokens": 0, "lag_p99_ms": 0.5 + i,
                          "machine": "c, 2 cores", "started": "2026-11-22T10:00:00.000+00:00"}
                         for i in range(runs)]).assign(**differing)
    return SimpleNamespace(provenance=lambda: rows)


def test_a_long_provenance_table_is_folded_under_its_sum():
    short, long = (report.provenance(provenance(runs)).data for runs in (report.UNFOLDED_RUNS, 13))
    assert "<details" not in short and short.count("<tr>") == report.UNFOLDED_RUNS + 1
    assert long.startswith('<details class="folded"><summary>') and long.count("<tr>") == 14
    assert "13 runs, 1,300 requests, 13 failed, 0 tokens unaccounted for, client lag p99 at most 12.5 ms" in long


def test_runs_of_several_machines_or_days_are_told():
    assert "several machines" not in report.provenance(provenance(2)).data
    days = report.provenance(provenance(2, started=["2026-11-22T10:00:00.000+00:00", "2026-11-24T10:00:00.000+00:00"]))
    assert "from 22 November to 24 November 2026 on c, 2 cores" in days.data
    assert "c, 2 cores and on d, 4 cores" in report.provenance(provenance(2, machine=["c, 2 cores", "d, 4 cores"])).data


def test_words_of_ours_get_minus_signs_and_code_and_a_models_answer_stays():
    assert pages.words("lost -0.05 [-0.1, 2e-3] on 2026-11-22, `a_b` < (-1)") == (
        "lost −0.05 [−0.1, 2e-3] on 2026-11-22, <code>a_b</code> &lt; (−1)")
    html = report.table(pd.DataFrame({"measured": ["-1.0 [-2.0, 0.0] ×"], "answer": ["It is -42 `x`."]}), "c").data
    assert "<td>−1.0 [−2.0, 0.0] ×</td>" in html and "<td>It is -42 `x`.</td>" in html


def test_a_long_table_is_folded_under_its_caption():
    short, long = (report.table(pd.DataFrame({"n": range(rows)}), "Counts.").data for rows in (30, 31))
    assert short.startswith('<div class="scroll">')
    assert long.startswith('<details class="folded"><summary>Counts (31 rows)</summary>') and long.count("<tr>") == 32


def test_claims_have_one_layout_with_what_was_compared_where_it_is_another_number():
    decided = claims.decide({"01.kv_peak_ratio": Estimate(4.0, 2.0, 5.0, "×"),
                             "01.kv_swing_ratio": Estimate(2.0, 1.0, 3.0, "×"),
                             "01.kv_range_rllm": Estimate(0.3, 0.2, 0.4, "share")})
    decided = decided[decided.notebook == "01_kv_cache_usage"]
    html = report.table(decided, "Decided; `compared` is beside.").data
    assert html.count('<td class="verdict') == len(decided) and "● supported" in html
    assert "<code>compared</code>" in html and "compared 0.3" in html and "compared 4" not in html
    assert "ratio_to_paper" in html
    box = pages.answer(decided, "Do it < that.")
    assert "Do it &lt; that." in box and "4.00 [2.00, 5.00] ×" in box
    assert pages.answer(decided.iloc[:0]).strip() == ""
    assert pages.tally(["supported", "undecided", "supported"]) == (
        "Of 3 claims 2 are supported, 1 undecided and 0 not supported")


def test_a_page_of_verdicts_is_told_apart_by_what_was_measured_elsewhere_known_or_not(house, monkeypatch):
    job = report.Job("00_a", Path(__file__), {}, last=True)
    digests = []
    for numbers in ({}, {"01.kv_peak_ratio": Estimate(4.0, 2.0, 5.0, "×")}):
        monkeypatch.setattr(report, "beside", lambda _, numbers=numbers: claims.decide(numbers))
        digests.append(report._digest(job, "embedded", [job], []))
    assert digests[0] != digests[1]


def test_model_text_is_never_markup():
    html = report.text(HOSTILE).data
    assert html.count("<") == 2 and "&lt;script&gt;" in html


def test_record_and_numbers_round_trip(house):
    report.record("01_a", {"01.x": Estimate(1.0, 0.5, 1.5, "s", 12), "01.y": 3, "01.z": Estimate(math.nan, unit="s")})
    report.record("02_b", {"02.x": {"value": 2.0, "lo": 1.0, "hi": math.inf}})
    found = report.numbers("embedded")
    assert found["01.x"] == {"value": 1.0, "lo": 0.5, "hi": 1.5, "unit": "s", "n": 12}
    assert found["01.y"]["value"] == 3 and found["01.z"]["value"] is None and found["02.x"]["hi"] == "inf"
    assert Estimate.of(found["01.x"]) == Estimate(1.0, 0.5, 1.5, "s", 12) and not Estimate.of(found["01.z"]).known


@pytest.mark.parametrize("numbers, message", [
    ({}, "records no numbers"), ({"a b": 1.0}, "no name"), ({"a": math.nan}, "is nan"), ({"a": math.inf}, "is inf"),
    ({"a": "1"}, "not a number"), ({"a": True}, "not a number"), ({"a": {"value": 1, "low": 0}}, "fields"),
    ({"a": {"value": 1.0, "lo": 2.0, "hi": 0.0}}, "down to"), ({"a": Estimate(math.inf)}, "is inf")])
def test_record_refuses_what_is_no_finite_number(house, numbers, message):
    with pytest.raises(AsuError, match=message):
        report.record("01_a", numbers)
    assert not list((house / "reports").rglob("*.json"))


def test_a_number_recorded_twice_and_no_numbers_are_errors(house):
    with pytest.raises(AsuError, match="no recorded numbers"):
        report.numbers("embedded")
    report.record("01_a", {"x": 1.0})
    report.record("02_b", {"x": 1.0})
    with pytest.raises(AsuError, match="recorded twice"):
        report.numbers("embedded")


def test_guidance_is_kept_with_the_numbers_and_escaped_on_the_page(house):
    report.record("01_a", {"x": 1.0}, guidance="Use 2 < 3 slots.")
    report.record("02_b", {"y": 1.0})
    assert report.guidance("embedded").to_dict("records") == [{"notebook": "01_a", "guidance": "Use 2 < 3 slots."}]
    assert "2 &lt; 3" in report.note("Use 2 < 3 slots.").data


# --- building -------------------------------------------------------------------------------------------------------

SHOWS = f'''
import pandas as pd
from asu import plots, report
---
LENGTH = 3  # points drawn [points]
---
answers = pd.DataFrame({{"points": [LENGTH], "answer": [{HOSTILE!r}]}})
---
curve = pd.DataFrame([{{"task": t, "pair": "mini-4m", "role": r, "metric": "kv_peak", "value": 0.1 * LENGTH, "lo": 0.1,
                       "hi": 0.5}} for t in ("mini-easy", "mini-hard") for r in ("RLLM", "LLM")])
report.show(plots.kv_summary(curve), "peaks", "Peaks of two sets.", {ALT!r})
---
report.table(answers, "What was answered")
---
report.text(answers.answer[0])
---
print(answers.answer[0])
---
report.record("01_first", {{"01.kv_peak_ratio": {{"value": 1.0 * LENGTH, "lo": 2.0, "hi": 4.0, "unit": "×", "n": 9}}}})
'''
READS = '''
from asu import report
---
SHOWN = 1  # numbers shown [numbers]
---
report.record("00_summary", {"00.count": len([n for n in report.numbers() if not n.startswith("00")])})
'''


def write_notebook(stem: str, title: str, cells: str) -> None:
    book = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3",
                                                             "language": "python"}})
    book.cells = [nbformat.v4.new_markdown_cell(f"# {title}\n\nBecause **it** must be seen.")]
    for source in cells.split("---"):
        cell = nbformat.v4.new_code_cell(source.strip())
        if re.match(r"[A-Z_]+ = ", cell.source):
            cell.metadata["tags"] = ["parameters"]
        book.cells.append(cell)
    nbformat.write(book, paths.NOTEBOOKS / f"{stem}.ipynb")


def build(**more) -> tuple[Path, list[str]]:
    lines: list[str] = []
    return report.build("tiny", progress=lines.append, runs=lambda stem, profile: [], **more), lines


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A report of two notebooks, one of them showing hostile text."""
    root = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        yield from _built(root, patch)


def _built(root: Path, patch: pytest.MonkeyPatch):
    for name, place in {"NOTEBOOKS": "notebooks", "PROFILES": "notebooks/profiles", "REPORTS": "reports",
                        "FIGURES": "figures", "ROOT": ""}.items():
        patch.setattr(paths, name, root / place)
    patch.setattr(report, "library_digest", lambda: "the library's")  # so that only what a test changes changes
    patch.setenv("ASU_OUTPUT", str(root))  # what the notebooks' own processes see
    paths.PROFILES.mkdir(parents=True)
    (paths.PROFILES / "tiny.yaml").write_text(
        "profile: tiny\ndescription: Two notebooks & a figure.\n"
        "notebooks:\n  00_summary:\n  01_first:\n    LENGTH: 4\n")
    write_notebook("00_summary", "What does it come to?", READS)
    write_notebook("01_first", "Does it rise & fall?", SHOWS)
    index, lines = build()
    yield root, index, lines


def test_a_build_makes_pages_figures_numbers_and_an_index(built):
    root, index, lines = built
    out = root / "reports/tiny"
    assert index == out / "index.html"
    assert {p.name for p in out.glob("*.html")} == {"index.html", "columns.html", "00_summary.html", "01_first.html"}
    assert (out / "figures/peaks.svg").exists()
    assert json.loads((out / "numbers/00_summary.json").read_text())["numbers"]["00.count"]["value"] == 1
    assert json.loads((out / "numbers/01_first.json").read_text())["numbers"]["01.kv_peak_ratio"]["value"] == 4
    assert lines.index("00_summary: running") > next(i for i, x in enumerate(lines) if x.startswith("01_first: done"))
    assert not list(out.rglob("*partial*"))


def test_the_index_tells_claims_cards_and_provenance(built):
    _, index, _ = built
    html = index.read_text()
    assert len(re.findall(r'<td class="verdict', html)) == len(claims.CLAIMS)
    assert "4.00 [2.00, 4.00] ×" in html and "● supported" in html and "◆ undecided" in html
    assert "Does it rise &amp; fall?" in html and 'src="figures/peaks.svg"' in html
    for fact in ("profile tiny", "revision", "cores", "matplotlib", "time serving"):
        assert fact in html


def test_a_card_shows_its_notebooks_first_number_and_else_its_opening_lines(built):
    _, index, _ = built
    one = {"claim": "F1.heavy", "statement": "It fills <more>.", "measured": "4.00 [2.00, 4.00] ×", "mark": "●",
           "verdict": "supported", "reason": "", "paper": "", "page": "01_first.html", "notebook": "01_first"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_claim_rows", lambda profile, made: [one, {**one, "measured": "another number"}])
        build()
    cards = re.findall(r'<a class="card".*?</a>', index.read_text(), re.DOTALL)
    build()
    assert [("4.00 [2.00, 4.00] ×" in card, "must be seen" in card) for card in cards] == [(False, True), (True, False)]
    assert "It fills &lt;more&gt;." in cards[1] and "● supported" in cards[1] and "another" not in cards[1]


def test_an_unchanged_notebook_is_not_executed_again_and_a_changed_one_is(built):
    root, _, _ = built
    assert build()[1] == ["01_first: unchanged", "00_summary: unchanged"]
    (root / "reports/tiny/numbers/01_first.json").unlink()
    executed = root / "reports/tiny/notebooks/01_first.ipynb"
    name = re.search(r'figure id=\\"figure-([^"\\\\]+)', executed.read_text())[1]
    executed.write_text(executed.read_text().replace(f"figure-{name}", "figure-gone"))
    (root / "reports/tiny/figures/gone.svg").write_text("<svg/>")
    lines = build(notebooks=["01_first"])[1]
    assert (root / f"reports/tiny/figures/{name}.svg").exists()
    assert not (root / "reports/tiny/figures/gone.svg").exists(), "drawn once, and no more"
    assert lines[0] == "01_first: running" and lines[1].startswith("01_first: done in")
    assert build()[1] == ["01_first: unchanged", "00_summary: unchanged"]


def test_each_input_of_a_notebook_moves_its_digest(built, tmp_path, monkeypatch):
    job = next(job for job in report._jobs("tiny") if job.stem == "00_summary")
    known = report._jobs("tiny")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "DONE").write_text("{}")
    digests = [report._digest(job, "tiny", known, []), report._digest(job, "tiny", known, [folder])]
    (folder / "DONE").write_text('{"again": 1}')
    digests.append(report._digest(job, "tiny", known, [folder]))
    digests.append(report._digest(report.Job(job.stem, job.source, {"SHOWN": 2}, True), "tiny", known, []))
    digests.append(report._digest(job, "tiny", known[:1], []))
    monkeypatch.setattr(report, "library_digest", lambda: "another")
    digests.append(report._digest(job, "tiny", known, []))
    assert len(set(digests)) == len(digests)


def test_run_folders_are_those_that_are_complete(monkeypatch):
    plan = pd.DataFrame({"run": ["a", "b"], "folder": ["/runs/a", None]})
    monkeypatch.setattr(report.profiles, "study_of", lambda stem, profile: SimpleNamespace(plan=lambda: plan))
    assert report.run_folders("01_first", "tiny") == [Path("/runs/a")]
    monkeypatch.setattr(report.profiles, "study_of",
                        lambda stem, profile: SimpleNamespace(plan=lambda: pd.DataFrame([])))
    assert report.run_folders("00_summary", "tiny") == []


def test_serving_counts_a_shared_server_start_once(tmp_path):
    for name, seconds in (("a", 30.0), ("b", 20.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "DONE").write_text(json.dumps({"seconds": seconds}))
        (tmp_path / name / "env.json").write_text(json.dumps({"sessions": [{"server_start_s": 40.0}]}))
    assert report.serving([tmp_path / "a", tmp_path / "b"], 10.0).startswith("50% of 2 min")
    assert report.serving([], 10.0) == "no run was read"


def test_a_failing_notebook_names_its_cell_and_leaves_no_page(house, monkeypatch):
    monkeypatch.setenv("ASU_OUTPUT", str(house))
    (paths.PROFILES / "tiny.yaml").write_text("profile: tiny\ndescription: d\nnotebooks:\n  01_bad:\n  02_worse:\n")
    cells = "A = 1  # a number [1]\n---\n{}\n---\nprint('never')"
    write_notebook("01_bad", "Does it fail?", cells.format("A / 0"))
    write_notebook("02_worse", "Does it fail?", cells.format(
        "from asu.errors import AsuError\nraise AsuError('no complete run', 'make runs')"))
    with pytest.raises(AsuError) as caught:
        build(jobs=1)
    assert "01_bad, cell 3: ZeroDivisionError: division by zero" in caught.value.problem
    assert "A / 0" in caught.value.problem and "01_bad.partial.ipynb" in caught.value.remedy
    with pytest.raises(AsuError) as caught:
        build(notebooks=["02_worse"])
    assert caught.value.problem.endswith("02_worse, cell 3: no complete run") and caught.value.remedy == "make runs"
    assert not list((house / "reports").rglob("*.html"))
    with pytest.raises(AsuError, match="has no notebook 03_none"):
        build(notebooks=["03_none"])


# --- in a browser ---------------------------------------------------------------------------------------------------

LOOK = {
    "title": "document.title",
    "caption_wide": "Math.max(...[...document.querySelectorAll('figcaption, caption')].map(c => c.clientWidth))",
    "wide": "document.documentElement.scrollWidth - document.documentElement.clientWidth",
    "drawings": "[...document.querySelectorAll('figure svg')].map(s => [s.getAttribute('aria-label'), "
                "s.getBoundingClientRect().width, s.getBoundingClientRect().height])",
    "pictures": "[...document.images].map(i => [i.alt, i.complete && i.naturalWidth])",
    "captions": "[...document.querySelectorAll('figcaption, caption')].map(c => c.textContent)",
    "scripts": "document.scripts.length",
    "handlers": "document.querySelectorAll('[onerror], [onload], [onclick]').length",
    "text": "document.body.innerText",
    "code": "[...document.querySelectorAll('details.code')].map(d => d.open)",
    "links": "[...document.querySelectorAll('nav a')].map(a => a.getAttribute('href'))",
    "page": "getComputedStyle(document.body).backgroundColor",
    "ink": "getComputedStyle(document.body).color",
    "card": "(s => s && getComputedStyle(s).backgroundColor)(document.querySelector('figure svg'))",
}


def look(path: Path, **how):
    seen = browser.visit(path.as_uri(), LOOK, **how)
    assert seen.errors == []
    outside = [url for url in seen.requests if not url.startswith((f"file://{path.parent}/", "data:"))]
    assert outside == [], "the page asked for something outside the report"
    return seen.values


@pytest.mark.parametrize("width", [1280, 390])
def test_a_notebooks_page_in_a_browser(built, tmp_path, width):
    root, _, _ = built
    seen = look(root / "reports/tiny/01_first.html", width=width, screenshot=tmp_path / "page.png")
    assert seen["title"] == "Does it rise & fall?" and seen["wide"] <= 0
    (alt, wide, high), = seen["drawings"]
    assert alt == ALT and high > 50 and (0.8 * 900 < wide <= width if width > 640 else wide == 640)
    assert seen["caption_wide"] <= width  # read without scrolling, also where the figure or table scrolls
    assert seen["scripts"] == 0 and seen["handlers"] == 0 and seen["pictures"] == []
    assert seen["text"].count(HOSTILE) >= 3  # table, text, print: all as they are
    assert "Peaks of two sets." in seen["captions"]
    assert seen["code"].count(True) == 1  # the profile's parameters; all else is folded
    assert {"index.html", "00_summary.html"} <= set(seen["links"])
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_the_index_in_a_browser(built):
    _, index, _ = built
    for width in (1280, 390):
        seen = look(index, width=width)
        assert seen["wide"] <= 0 and seen["scripts"] == 0
        assert seen["pictures"] and all(alt and drawn for alt, drawn in seen["pictures"])


def test_dark_and_light_pages_are_readable_and_figures_keep_their_card(built):
    root, _, _ = built
    light, dark = (look(root / "reports/tiny/01_first.html", dark=dark) for dark in (False, True))
    assert light["card"] == dark["card"] == "rgb(255, 255, 255)"
    for seen in (light, dark):
        assert contrast(seen["page"], seen["ink"]) > 7
    assert luminance(dark["page"]) < 0.05 < luminance(light["page"])


def luminance(colour: str) -> float:
    """Relative luminance as WCAG defines it."""
    parts = [int(x) / 255 for x in re.findall(r"\d+", colour)[:3]]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_the_columns_page_in_a_browser(built):
    root, _, _ = built
    seen = look(root / "reports/tiny/columns.html", width=390)
    assert seen["wide"] <= 0
    for word in ("visible_s", "kv_use", "tbt_answer_s", "goodput" if "goodput" in pages.METRICS else "tps"):
        assert word in seen["text"]


def test_without_a_browser_the_test_says_how_to_get_one(monkeypatch):
    monkeypatch.setattr(browser.shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="apt-get install -y chromium"):
        browser.visit("about:blank", {})


# --- publishing -----------------------------------------------------------------------------------------------------


def finish(profile: str = "embedded") -> None:
    """A report of one notebook, as far as publishing looks."""
    write_notebook("01_a", "A", READS)
    (paths.PROFILES / f"{profile}.yaml").write_text(f"profile: {profile}\ndescription: d\nnotebooks:\n  01_a: {{}}\n")
    state = report.folder(profile) / "state/01_a.json"
    state.parent.mkdir(parents=True, exist_ok=True)
    state.write_text("{}")


def test_publish_copies_figures_and_numbers_and_drops_old_ones(house):
    finish()
    (house / "reports/embedded/state/01_a.json").unlink()
    with pytest.raises(AsuError, match="not whole: no 01_a"):
        report.publish("embedded")
    finish()
    report.show(small_figure(), "new", "c", "a")
    report.record("01_a", {"01.kv_peak_ratio": Estimate(4.0, 3.0, 5.0, "×", 9)})
    (house / "figures").mkdir()
    (house / "figures/old.svg").write_text("<svg/>")
    report.publish("embedded")
    assert {str(p.relative_to(house / "figures")) for p in (house / "figures").rglob("*.*")} == {
        "new.svg", "numbers/01_a.json"}


def test_another_profile_is_published_beside_the_embedded_one_and_told_in_the_readme(house, monkeypatch):
    for name, value in (("h200", 8.0), ("h200-mini", 2.0), ("embedded", 4.0)):
        monkeypatch.setenv("ASU_PROFILE", name)
        report.record("01_a", {"01.kv_peak_ratio": Estimate(value, value - 1, value + 1, "×", 9)})
        finish(name)
        assert report.publish(name) == house / "figures" / ("" if name == "embedded" else name)
    found = report.beside(report.BESIDE)
    assert list(found.claim) == ["F1.heavy"]
    assert found.label[0] == report.BESIDE["h200"]["others"], "the first that measured it"
    assert "| ● supported | ● 8.00 [7.00, 9.00] × (7B shapes) |" in report.readme_table()
    assert report.readme_table().count("|  |\n") == len(claims.CLAIMS) - 1, "empty where it was not measured there"


def test_the_readme_table_is_written_checked_and_found_stale(house):
    report.record("01_a", {"01.kv_peak_ratio": Estimate(4.0, 3.0, 5.0, "×", 9)})
    finish()
    report.publish("embedded")
    readme = house / "README.md"
    readme.write_text("# Title\n")
    with pytest.raises(AsuError, match="no place"):
        report.main([])
    readme.write_text(f"# Title\n\n{report.README_BEGIN}\n{report.README_END}\n\nMore.\n")
    with pytest.raises(AsuError, match="stale"):
        report.main(["--check-readme"])
    report.main([])
    report.main(["--check-readme"])
    content = readme.read_text()
    assert content.startswith("# Title") and content.endswith("More.\n")
    assert "| 4.00 [3.00, 5.00] × | ● supported |" in content
    assert content.count("\n| **") == len(claims.CLAIMS) and report.readme_table("embedded") in content
