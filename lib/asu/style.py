"""The one style sheet: colours, marks, order and labels of every role, task, outcome, phase and verdict."""

import functools
from dataclasses import dataclass

import matplotlib

from asu.errors import AsuError


@dataclass(frozen=True)
class Look:
    """How one thing is drawn everywhere; colour never carries the difference alone."""

    label: str
    colour: str
    marker: str = "o"
    dash: str = "-"
    hatch: str = ""


# Okabe and Ito's palette, told apart under every common colour-vision deficiency.
ROLES = {
    "RLLM": Look("RLLM (thinks first)", "#D55E00", "o", "-", ""),
    "LLM": Look("LLM (answers at once)", "#0072B2", "s", "--", "////"),
}

# A miniature set wears the colour and mark of the data set it stands for.
_EASY, _MEDIUM, _HARD, _FACTS = ("#009E73", "o"), ("#E69F00", "s"), ("#CC79A7", "^"), ("#56B4E9", "D")
TASKS = {
    "mini-easy": Look("mini-easy", *_EASY),
    "gsm8k": Look("GSM8K", *_EASY),
    "mini-medium": Look("mini-medium", *_MEDIUM),
    "math500": Look("MATH-500", *_MEDIUM),
    "mini-hard": Look("mini-hard", *_HARD),
    "aime24": Look("AIME 2024", *_HARD),
    "mini-facts": Look("mini-facts", *_FACTS),
    "gpqa": Look("GPQA", *_FACTS),
}

OUTCOMES = {
    "correct": Look("correct", "#009E73"),
    "wrong": Look("wrong", "#E69F00", hatch="////"),
    "unparsed": Look("no answer found", "#CC79A7", hatch="...."),
    "cut off": Look("cut off by the budget", "#56B4E9", hatch="xxxx"),
    "failed": Look("request failed", "#4D4D4D", hatch="++++"),
}

PHASES = {
    "queue": Look("waiting for the first token", "#8C8C8C", dash=":"),
    "thinking": Look("thinking", "#5E3C99"),
    "answer": Look("answering", "#F5A742"),
}

VERDICTS = {
    "supported": Look("supported", "#009E73", "o"),
    "undecided": Look("undecided", "#8C8C8C", "D"),
    "not supported": Look("not supported", "#D55E00", "X"),
}

INK = "#1A1A1A"
FAINT = "#8C8C8C"
PAPER = Look("paper", INK, "D")
WIDTH = 8.0  # inches: a page's column; a phone shows it 640 pixels wide, to scroll, for at 360 its text is too small

RC = {
    "figure.facecolor": "white",  # a white card, on white and on dark pages alike
    "savefig.facecolor": "white",
    "figure.dpi": 100,
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same glyphs on every machine
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.7,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "hatch.linewidth": 0.7,
    "svg.fonttype": "path",  # no font is asked of the reader's machine
    "svg.hashsalt": "asu",  # the same figure is the same file
}


def styled(figure_function):
    """Run a figure function under this sheet alone, whatever the caller's rcParams are."""

    @functools.wraps(figure_function)
    def wrapper(*args, **kwargs):
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(RC)
            return figure_function(*args, **kwargs)

    return wrapper


def role(name: str) -> Look:
    """The look of "RLLM" or "LLM"."""
    if name not in ROLES:
        raise AsuError(f"unknown role {name!r}", f"use one of: {', '.join(ROLES)}")
    return ROLES[name]


def task(name: str) -> Look:
    """The look of a task; one that has none yet is drawn in black under its own name."""
    return TASKS.get(name, Look(name, INK, "v"))


def ordered(names, known: dict) -> list[str]:
    """The distinct `names` in the sheet's order, unknown ones after the known, by name."""
    rank = {name: place for place, name in enumerate(known)}
    return sorted(set(names), key=lambda name: (rank.get(name, len(rank)), name))
