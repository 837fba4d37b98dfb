"""Every figure draws what its frame says: panels filled, intervals on bars, legend outside, the same bytes twice."""

import re

import frames
import matplotlib
import matplotlib.pyplot
import numpy as np
import pandas as pd
import pytest
from asu import claims, columns, metrics, pages, plots, records, study, style
from asu.errors import AsuError
from asu.specs import RunSpec
from matplotlib.collections import LineCollection


def hard():
    return frames.requests().query("task == 'mini-hard'")


FIGURES = {
    "kv_use_over_time": lambda: plots.kv_use_over_time(
        frames.engine(), frames.engine().assign(predicted=lambda f: f["kv_use"] * 0.9), frames.paper()),
    "kv_summary": lambda: plots.kv_summary(frames.kv_summary(), claims.paper("kv_peak", size="7B")),
    "running_over_time": lambda: plots.running_over_time(frames.engine(("batch16", "closed16"), ("mini-4m",)),
                                                         plots.PAPER_RUNNING),
    "queue_over_time": lambda: plots.queue_over_time(frames.engine().assign(waiting=3.0)),
    "swimlane": lambda: plots.swimlane(hard()),
    "straggler_summary": lambda: plots.straggler_summary(frames.stragglers(), claims.paper("straggler_share")),
    "time_vs_difficulty": lambda: plots.time_vs_difficulty(frames.requests(), frames.slopes()),
    "domain_preference": lambda: plots.domain_preference(frames.differences(), claims.paper("accuracy")),
    "outcomes": lambda: plots.outcomes(frames.shares()),
    "accuracy_by_level": lambda: plots.accuracy_by_level(frames.levels()),
    "length_by_outcome": lambda: plots.length_by_outcome(frames.requests().assign(
        outcome=lambda f: np.where(f["finish_reason"] == "length", "cut off", "correct"), budget=1500)),
    "budget_curve": lambda: plots.budget_curve(frames.budget_curve(), claims.paper("accuracy_by_budget")),
    "batch_size": lambda: plots.batch_size(frames.batch_curve()),
    "survivor": lambda: plots.survivor(frames.survival()),
    "claims_picture": lambda: plots.claims_picture(decided := claims.decide(frames.numbers()), decided.assign(
        value=0.0, lo=-0.037, hi=0.037, unit="share"), "H200"),  # one character too long for a line
}


@pytest.fixture(scope="module", params=list(FIGURES))
def drawn(request):
    figure = FIGURES[request.param]()
    return request.param, figure, pages.svg(figure, "example", "an example")


def boxes(figure, artists):
    renderer = figure.canvas.get_renderer()
    return [artist.get_window_extent(renderer) for artist in artists]


def test_every_panel_holds_data_and_names_its_axes(drawn):
    name, figure, _ = drawn
    assert figure.axes
    for ax in figure.axes:
        assert ax.lines or ax.patches or ax.collections, f"{name} has an empty panel"
    labels = [text for ax in figure.axes for text in (ax.get_xlabel(), ax.get_ylabel(), ax.get_title())]
    assert name == "claims_picture" or any(labels)
    units = " ".join(labels)
    assert name in ("claims_picture",) or re.search(r"\[.+\]|budget|difficulty", units), f"{name} tells no unit"


def test_the_legend_stands_outside_the_data(drawn):
    name, figure, _ = drawn
    matplotlib.backends.backend_agg.FigureCanvasAgg(figure).draw()
    assert len(figure.legends) == 1
    legend = boxes(figure, figure.legends)[0]
    for panel in boxes(figure, figure.axes):
        assert not legend.overlaps(panel), f"{name}: the legend covers a panel"


def test_text_stays_inside_the_figure(drawn):
    name, figure, _ = drawn
    matplotlib.backends.backend_agg.FigureCanvasAgg(figure).draw()
    titles = [text for ax in figure.axes for text in (ax.title, ax.xaxis.label, ax.yaxis.label)] + figure.texts
    for text, box in zip(titles, boxes(figure, titles), strict=True):
        if text.get_text():
            assert box.x0 >= -2 and box.x1 <= figure.bbox.x1 + 2, f"{name}: {text.get_text()!r} is cut off"
    fine = matplotlib.backends.backend_agg.RendererAgg(1, 1, 600)  # as wide as in an SVG: pixels round widths
    for text in figure.texts:
        assert text.get_window_extent(fine, dpi=600).x1 <= 600 * figure.get_figwidth(), f"{name}: {text.get_text()!r}"


def test_no_state_leaks(drawn):
    assert not matplotlib.pyplot.get_fignums()
    assert matplotlib.rcParams["svg.fonttype"] == matplotlib.rcParamsDefault["svg.fonttype"]


def test_the_drawing_is_one_safe_element(drawn):
    _, _, drawing = drawn
    assert drawing.startswith("<svg role=\"img\" aria-label=\"an example\"")
    assert drawing.count("<svg") == 1 and drawing.rstrip().endswith("</svg>")
    for foreign in ("<script", "<metadata", "<text", "font-family", "href=\"http", "@import"):
        assert foreign not in drawing, foreign
    ids = set(re.findall(r'\bid="([^"]+)"', drawing))
    assert ids and all(name.startswith("example-") for name in ids)
    assert set(re.findall(r'(?:xlink:href="|url\()#([^")]+)', drawing)) <= ids


@pytest.mark.parametrize("name", ["kv_summary", "claims_picture"])
def test_the_same_frame_gives_the_same_bytes(name):
    first, second = (pages.svg(FIGURES[name](), "same", "same") for _ in range(2))
    assert first == second


def test_bars_have_intervals_and_the_heights_of_the_frame():
    summary = frames.kv_summary().query("pair == 'mini-4m' and metric == 'kv_peak'")
    ax = plots.kv_summary(summary).axes[0]
    heights = sorted(bar.get_height() for bar in ax.patches)
    assert heights == pytest.approx(sorted(summary["value"]))
    ends = sorted(tuple(line[:, 1]) for lines in ax.collections if isinstance(lines, LineCollection)
                  for line in lines.get_segments())
    assert np.ravel(ends) == pytest.approx(np.ravel(sorted(zip(summary["lo"], summary["hi"], strict=True))))


def test_roles_differ_in_mark_and_dash_as_well_as_colour():
    rllm, llm = style.ROLES["RLLM"], style.ROLES["LLM"]
    assert len({(look.marker, look.dash, look.hatch) for look in (rllm, llm)}) == 2
    ax = plots.kv_use_over_time(frames.engine()).axes[0]
    assert {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in ax.lines} == {
        (look.colour, look.dash, look.marker) for look in (rllm, llm)}


def test_the_pool_and_the_papers_peak_are_told():
    figure = plots.kv_use_over_time(frames.engine(), paper=frames.paper())
    assert "pool of\n8,192 tokens" in " ".join(ax.get_ylabel() for ax in figure.axes)
    assert "the paper's peak (7B)" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_papers_marks_stand_at_the_papers_values():
    ax = plots.domain_preference(frames.differences(), claims.paper("accuracy")).axes[0]
    marks = {round(float(line.get_xdata()[0]), 1): int(line.get_ydata()[0])
             for line in ax.lines if line.get_marker() == style.PAPER.marker and line.get_markerfacecolor() == "white"}
    assert marks == {8.0: 0, 63.0: 1, 23.4: 2, 12.0: 3}
    figure = plots.straggler_summary(frames.stragglers(), claims.paper("straggler_share"))
    assert sum(len(ax.lines) for ax in figure.axes) == 1  # one number, on the one bar it belongs to


def test_a_paper_without_these_sets_is_not_in_the_legend():
    other = {"task": "puzzles"}
    for figure in (plots.straggler_summary(frames.stragglers().assign(**other), claims.paper("straggler_share")),
                   plots.domain_preference(frames.differences()[:1].assign(**other), claims.paper("accuracy"))):
        assert not any("paper" in text.get_text() for text in figure.legends[0].get_texts())


def test_the_leads_of_seven_pairs_have_rows_and_marks_of_their_own():
    pairs = [f"pair-{k}" for k in range(7)]
    leads = pd.concat([frames.differences().query("pair == 'mini-4m'").assign(pair=pair) for pair in pairs])
    figure = plots.domain_preference(leads)
    marks = [line for line in figure.axes[0].lines if line.get_marker() not in ("None", style.PAPER.marker)]
    rows = sorted(float(line.get_ydata()[0]) for line in marks)
    assert len(rows) == 4 * 7 and min(np.diff(rows)) > 0.1 and rows[7] - rows[6] > 0.15  # sets stay apart
    assert len({line.get_marker() for line in marks}) == 7
    assert figure.get_figheight() > plots.domain_preference(frames.differences()).get_figheight()


def test_swimlane_phases_follow_the_times():
    requests = pd.DataFrame({
        "role": "RLLM", "due_s": [10.0, 10.0], "first_s": [11.0, 12.0], "visible_s": [15.0, np.nan],
        "last_s": [16.0, 20.0], "thinking_tokens": [40, 80], "finish_reason": ["stop", "length"]})
    ax = plots.swimlane(requests).axes[0]
    lanes = {look: sorted((float(a), float(b)) for (a, _), (b, _) in lines.get_segments())
             for look, lines in zip(style.PHASES, ax.collections, strict=True)}
    assert lanes == {"queue": [(0, 1), (0, 2)], "thinking": [(1, 5), (2, 10)], "answer": [(5, 6)]}
    assert ax.lines[0].get_xydata().tolist() == [[10.0, 1.0]]  # the one that was cut off


def test_a_plain_model_has_no_thinking_phase():
    requests = frames.requests().query("task == 'mini-easy' and role == 'LLM'")
    thinking = plots.swimlane(requests).axes[0].collections[1]
    assert len(thinking.get_segments()) == 0


def test_difficulty_lines_have_the_given_slope():
    slopes = frames.slopes(("output_tokens",)).query("task == 'mini-hard'")
    figure = plots.time_vs_difficulty(frames.requests().query("task == 'mini-hard'"), slopes)
    fits = [line.get_xydata() for line in figure.axes[0].lines if len(line.get_xydata()) == 2]
    measured = [float((xy[1, 1] - xy[0, 1]) / (xy[1, 0] - xy[0, 0])) for xy in fits]
    assert measured == pytest.approx(list(slopes["value"]))


def test_outcome_shares_fill_the_bar():
    ax = plots.outcomes(frames.shares()).axes[0]
    assert max(bar.get_x() + bar.get_width() for bar in ax.patches) == pytest.approx(1)
    assert len(ax.patches) == len(frames.shares())


def test_an_unmeasured_claim_has_no_panel_but_its_line():
    decided = claims.decide(frames.numbers())
    figure = plots.claims_picture(decided)
    assert len(figure.axes) == len(decided) - 1
    assert any("not measured" in text.get_text() for text in figure.texts)


def test_every_verdict_has_a_look():
    assert {"supported", "not supported", "undecided"} == set(style.VERDICTS)
    assert set(metrics.OUTCOMES) == set(style.OUTCOMES)


@pytest.mark.parametrize("name, frame", [("kv_summary", frames.kv_summary()), ("outcomes", frames.shares()),
                                         ("survivor", frames.survival())])
def test_a_frame_without_rows_or_columns_is_an_error_with_a_remedy(name, frame):
    with pytest.raises(AsuError, match="no rows"):
        getattr(plots, name)(frame.iloc[:0])
    with pytest.raises(AsuError, match="lacks the columns"):
        getattr(plots, name)(frame.drop(columns=["task"]))


def test_the_papers_numbers_are_drawn_the_same_with_and_without_tasks():
    for quantity, where, draw, ours in [("kv_peak", {"size": "7B"}, plots.kv_summary, frames.kv_summary()),
                                        ("accuracy_by_budget", {}, plots.budget_curve, frames.budget_curve())]:
        with_tasks = claims.paper(quantity, frames.TASKS, **where)
        figures = [draw(ours, paper) for paper in (claims.paper(quantity, **where), with_tasks)]
        assert pages.svg(figures[0], "same", "same") == pages.svg(figures[1], "same", "same"), quantity


def test_a_task_without_a_look_is_still_drawn():
    figure = plots.kv_summary(frames.kv_summary().replace({"mini-hard": "a-new-task"}))
    assert [tick.get_text() for tick in figure.axes[-1].get_xticklabels()][-1] == "a-new-task"


def test_every_frame_column_is_documented():
    assert set(columns.REQUESTS) == set(records.REQUESTS.names)
    assert set(columns.EVENTS) == set(records.EVENTS.names) - {"t_100us"} | {"t_s"}  # read back in seconds
    labels = study.labels(RunSpec(model="mini-4m-think", task="mini-easy"))
    assert set(columns.LABELS) == {"run", "kv_pool_actual", *labels}
    derived = set(metrics.derive(_recorded())) - set(_recorded())
    assert derived == set(columns.DERIVED)


def _recorded() -> pd.DataFrame:
    row = dict.fromkeys(columns.REQUESTS, 1.0) | {"error": None, "outcome": "correct"}
    return pd.DataFrame([row])
