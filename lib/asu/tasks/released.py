r"""Which answers the released client of the reproduced paper accepts: its rules per set, to measure what they miss.

Described from its behaviour, for comparison only; runs are graded by `grading`. Before grading it drops every line
that is empty or begins with "#", so that an answer after "####" never arrives (not for GPQA).
"""

import math
import re

from asu.errors import AsuError

# (the paper's set, the right answer, an answer as models write it): all but the last three of them are right
FORMS = [
    ("GSM8K", "42", "The answer is 42."), ("GSM8K", "42", "\\boxed{42}"), ("GSM8K", "42", "#### 42"),
    ("GSM8K", "70000", "He made $70,000."), ("GSM8K", "42", "The answer is 42. That leaves 8 for Lea."),
    ("MATH-500", "5", "Answer: 5"), ("MATH-500", "5", "\\boxed{5}"), ("MATH-500", "5", "**Answer: 5**"),
    ("MATH-500", "5", "The answer is $\\boxed{5}$."), ("MATH-500", "0.75", "Answer: 3/4"),
    ("MATH-500", "\\frac{4}{3}", "Answer: \\dfrac{4}{3}"), ("MATH-500", "70000", "Answer: 70,000"),
    ("MATH-500", "1,-2", "Answer: -2, 1"), ("MATH-500", "x=5", "Answer: 5"),
    ("AIME 2024", "42", "\\boxed{042}"), ("AIME 2024", "42", "The answer is $\\frac{84}{2} = 42$."),
    ("GPQA-diamond", "B", "Answer: B"), ("GPQA-diamond", "B", "**Answer: B**"), ("GPQA-diamond", "B", "\\boxed{B}"),
    ("GPQA-diamond", "B", "The answer is B."), ("GPQA-diamond", "B", "Answer: B) London"),
    ("GPQA-diamond", "B", "The answer is A. Wait.\nAnswer: A\nNo: Answer: B"),
    ("GSM8K", "42", "The answer is -42."), ("AIME 2024", "42", "The answer is not 42."),
    ("GPQA-diamond", "B", "None of them, I would grab"),
]

# In this order, the last match of the first that matches anywhere; AIME's answers have at most three digits.
_AIME = [re.compile(pattern, re.IGNORECASE | re.DOTALL) for pattern in (
    r"final answer is.*?\\boxed\{(\d+)\}", r"(?:answer|result)(?:\s+is\s+|\s*:\s*)\$?(\d+)\b", r"\\boxed\{(\d+)\}",
    r"(?:therefore|thus|so)(?:,?\s+the answer is|\s+we get)\s+\$?(\d+)\b", r"(?:equals|equal to|=)\s*\$?(\d+)\b",
    r"is\s+\$?(\d+)\.?$", r"\b(\d+)$", r"(\d+)")]


def accepts(of: str, expected: str, text: str) -> bool:
    """Whether the released client counts `text` as right where `expected` is; `of`: the paper's set (stands_for)."""
    if of not in _RULES:
        raise AsuError(f"the released client has no grader for {of!r}", f"use one of: {', '.join(_RULES)}")
    return _RULES[of](expected, text)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


def _gsm8k(expected: str, text: str) -> bool:
    """The last run of digits with at most one point in it: signs and thousands' commas are not read."""
    found, right = (re.findall(r"(?:\d*\.)?\d+", "\n".join(_lines(words))) for words in (text, expected))
    return bool(found and right) and float(found[-1]) == float(right[-1])


def _math500(expected: str, text: str) -> bool:
    """The last line that begins with "Answer:", else the last line, as a number or else as a text."""
    lines = _lines(text)
    marked = [line[len("answer:"):].strip() for line in lines if line.lower().startswith("answer:")]
    if not lines:
        return False
    stated, right = _plain((marked or lines)[-1]), _plain(expected)
    try:
        return math.isclose(float(stated), float(right), rel_tol=1e-4, abs_tol=1e-6)
    except ValueError:
        return stated == right


def _plain(text: str) -> str:
    r"""Without commas, braces, dollar and percent signs and \boxed; \frac{a}{b} as a/b; in small letters."""
    text = re.sub(r"\\frac\{(.+?)\}\{(.+?)\}", r"\1/\2", text.replace(",", ""))
    text = re.sub(r"\\text\{(.+?)\}", r"\1", text)
    return re.sub(r"\\boxed|[${}%]", "", text).strip().lower()


def _aime(expected: str, text: str) -> bool:
    body = "\n".join(_lines(text))
    found = next((matches for pattern in _AIME if (matches := pattern.findall(body))), [])
    return bool(found) and int(found[-1]) == int(expected)


def _gpqa(expected: str, text: str) -> bool:
    """The first "Answer: X" that ends its line, else the last character of the text if that is A to D."""
    marked = re.search(r"Answer:\s*([A-D])\s*(?:#|$)", text, re.IGNORECASE | re.MULTILINE)
    return (marked[1] if marked else text.strip()[-1:]).upper() == expected


_RULES = {"GSM8K": _gsm8k, "MATH-500": _math500, "AIME 2024": _aime, "GPQA-diamond": _gpqa}
