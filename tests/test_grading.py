"""Answer forms as models write them, each with the verdict a careful reader would give."""

import random
import threading

import pytest
from asu.errors import AsuError
from asu.tasks import grading
from asu.tasks.equality import Comparer
from hypothesis import given, settings
from hypothesis import strategies as st

CITIES = {"A": "Paris", "B": "London", "C": "Rome", "D": "Oslo"}
RIGHT, WRONG, UNPARSED = True, False, None

WHOLE = [  # (expected, text, verdict): mini sets and AIME
    ("42", "42", RIGHT),
    ("42", "42.", RIGHT),
    ("42", "42.0", RIGHT),
    ("42", " 42\n", RIGHT),
    ("42", "$42", RIGHT),
    ("42", "\\$42.00", RIGHT),
    ("42", "42%", RIGHT),
    ("42", "042", RIGHT),
    ("42", "+42", RIGHT),
    ("42", "x = 42", RIGHT),
    ("42", "42 apples", RIGHT),
    ("42", "**42**", RIGHT),
    ("42", "#### 42", RIGHT),
    ("42", "#### $42.00", RIGHT),
    ("42", "answer: 42", RIGHT),
    ("42", "ANSWER = 42", RIGHT),
    ("42", "**Answer: 42**", RIGHT),
    ("42", "**Answer:** 42", RIGHT),
    ("42", "### Answer\n42", RIGHT),
    ("42", "**Final Answer**\n\n42", RIGHT),
    ("42", "The answer is 42 eggs.", RIGHT),
    ("42", "The answer to the question is 42.", RIGHT),
    ("42", "So the answer is therefore 42, as 6 times 7 says.", RIGHT),
    ("42", "The answer is:\n\\[ 42 \\]", RIGHT),
    ("42", "Answer: 40 + 2 = 42", RIGHT),
    ("42", "The answer is $6 \\times 7$.", RIGHT),
    ("42", "\\boxed{42}", RIGHT),
    ("42", "The final answer is $\\boxed{42}$. I hope it is right.", RIGHT),
    ("42", "\\boxed{42\\text{ cm}}", RIGHT),
    ("42", "\\boxed{\\text{Janet has } 42 \\text{ eggs}}", RIGHT),
    ("42", "\\boxed{x=42}", RIGHT),
    ("42", "\\boxed{42^\\circ}", RIGHT),
    ("42", "\\boxed{\\$42}", RIGHT),
    ("42", "\\boxed{\\frac{84}{2}}", RIGHT),
    ("42", "\\boxed{\\boxed{42}}", RIGHT),
    ("42", "\\fbox{42}", RIGHT),
    ("42", "First \\boxed{41}, corrected to \\boxed{42}.", RIGHT),
    ("42", "\\boxed{42}\n\nAnswer: 41 was my first guess.", RIGHT),
    ("42", "The answer is 41. No: the answer is 42.", RIGHT),
    ("42", "The answer is 42. Recall that the answer should be between 0 and 999.", RIGHT),
    ("42", "6 and 7 give\n42", RIGHT),
    ("25", "\\boxed{025}", RIGHT),
    ("-3", "\\boxed{−3}", RIGHT),
    ("70000", "70,000", RIGHT),
    ("70000", "70 000", RIGHT),
    ("70000", "70\u202f000", RIGHT),
    ("70000", "$70{,}000$", RIGHT),
    ("70000", "\\boxed{70\\,000}", RIGHT),
    ("70000", "The answer is $70,000.", RIGHT),
    ("42", "43", WRONG),
    ("42", "-42", WRONG),
    ("42", "4.2", WRONG),
    ("42", "\\boxed{42}, but rather \\boxed{24}", WRONG),
    ("42", "Answer: 42 or 43", WRONG),
    ("70000", "70.000", WRONG),
    ("42", "", UNPARSED),
    ("42", "no idea", UNPARSED),
    ("42", "\\boxed{}", UNPARSED),
    ("42", "\\boxed{42", UNPARSED),
    ("42", "She ate 3 and has 42 left.", UNPARSED),
    ("42", "The answer is not 42.", UNPARSED),
    ("42", "The answer is 42. No, the answer is not 42.", UNPARSED),
    ("42", "The answer must be a multiple of 42", UNPARSED),
]

PROSE = [  # GSM8K: the last number where nothing is marked
    ("42", "She ate 3 and has 42 left.", RIGHT),
    ("70000", "He made $70,000.", RIGHT),
    ("42", "So 42 - 2 = 40.", WRONG),
    ("42", "The answer is 42. That leaves 8.", RIGHT),
    ("42", "no idea", UNPARSED),
]

LATEX = [  # MATH-500
    ("0.75", "3/4", RIGHT),
    ("0.75", "\\boxed{\\frac{3}{4}}", RIGHT),
    ("\\frac{3}{4}", "0.75", RIGHT),
    ("\\frac{3}{4}", "75\\%", RIGHT),
    ("\\frac43", "\\boxed{\\dfrac{4}{3}}", RIGHT),
    ("1\\frac{4}{5}", "\\boxed{1.8}", RIGHT),
    ("10,\\!080", "10080", RIGHT),
    ("\\$32,\\!348", "The answer is $32,348.", RIGHT),
    ("x=5", "\\boxed{5}", RIGHT),
    ("5", "The answer is $x=5$, since $2+3=5$.", RIGHT),
    ("5", "The answer is 5 cm.", RIGHT),
    ("42", "The answer is $42. She pays $5 more.", RIGHT),
    ("90^\\circ", "\\boxed{90}", RIGHT),
    ("864 \\mbox{ inches}^2", "\\boxed{864}", RIGHT),
    ("\\text{Evelyn}", "Evelyn", RIGHT),
    ("\\text{Evelyn}", "**Answer: Evelyn**", RIGHT),
    ("\\text{(C)}", "\\boxed{C}", RIGHT),
    ("1,-2", "\\boxed{-2, 1}", RIGHT),
    ("\\{1\\pm\\sqrt{5},-2\\}", "\\boxed{\\{-2, 1+\\sqrt5, 1-\\sqrt5\\}}", RIGHT),
    ("(3,4]", "The answer is $\\left(3, 4\\right]$.", RIGHT),
    ("x \\in [-2,7]", "\\boxed{[-2,7]}", RIGHT),
    ("\\left( 3, \\frac{\\pi}{2} \\right)", "\\[\\boxed{(3, \\pi/2)}\\]", RIGHT),
    ("\\begin{pmatrix} -2 \\\\ 7 \\end{pmatrix}", "\\begin{pmatrix} -2 \\\\ 7 \\end{pmatrix}", RIGHT),
    ("2k+2", "\\boxed{2(k+1)}", RIGHT),
    ("52_8", "\\boxed{52_{8}}", RIGHT),
    ("52_8", "\\boxed{52_9}", WRONG),
    ("(3,4]", "\\boxed{[3,4]}", WRONG),
    ("(3,4)", "\\boxed{(4,3)}", WRONG),
    ("1,-2", "\\boxed{1}", WRONG),
    ("5", "5x", WRONG),
    ("p - q", "\\boxed{q-p}", WRONG),
    ("\\frac{1}{3}", "0.3", WRONG),
    ("\\text{Evelyn}", "\\boxed{\\text{Navin}}", WRONG),
    ("3", "\\boxed{" + "9" * 6000 + "}", WRONG),
    ("42", "I cannot say what is true", UNPARSED),
    ("42", "The answer is unclear to me", UNPARSED),
    ("5", "Then $x+1=6$.\nSo $x=5$ follows from it.", UNPARSED),
]

CHOICE = [  # GPQA and mini-facts; B is right
    ("B", RIGHT),
    ("b", RIGHT),
    ("B.", RIGHT),
    ("(B)", RIGHT),
    ("**B**", RIGHT),
    ("B) London", RIGHT),
    ("London", RIGHT),
    ("London (B)", RIGHT),
    ("The answer is London (b).", RIGHT),
    ("Rome (C)", WRONG),
    ("Rome (B)", UNPARSED),
    ("\\boxed{B}", RIGHT),
    ("\\boxed{(B)}", RIGHT),
    ("\\boxed{\\text{B}}", RIGHT),
    ("\\boxed{B. London}", RIGHT),
    ("\\boxed{London}", RIGHT),
    ("The correct option is $\\boxed{\\textbf{(B)}}$", RIGHT),
    ("**Answer: B**", RIGHT),
    ("**Answer:** B", RIGHT),
    ("Answer: **B**", RIGHT),
    ("Answer: B London", RIGHT),
    ("Answer:\nB) London", RIGHT),
    ("### Answer\n(B)", RIGHT),
    ("The answer is B.", RIGHT),
    ("The answer is $B$.", RIGHT),
    ("The answer is: option B", RIGHT),
    ("The answer is B because A is wrong", RIGHT),
    ("The correct answer is (B) London, not (A).", RIGHT),
    ("The best choice is B, London.", RIGHT),
    ("Option B is correct.", RIGHT),
    ("I weigh A against B.\n\nB", RIGHT),
    ("The answer is A. Wait. The answer is B.", RIGHT),
    ("Answer: B\nExplanation: the choice is not obvious", RIGHT),
    ("\\boxed{B}, though at first my answer was: A", RIGHT),
    ("First \\boxed{B}, then \\boxed{A}", WRONG),
    ("C", WRONG),
    ("Answer: E", WRONG),
    ("Rome", WRONG),
    ("", UNPARSED),
    ("A is too far, C is too warm, B is in England", UNPARSED),
    ("None of the above", UNPARSED),
    ("Answer: None of the above", UNPARSED),
    ("The answer is A or B", UNPARSED),
    ("Answer: A, B", UNPARSED),
    ("The answer is not B", UNPARSED),
    ("The answer is B. No, the answer is not B.", UNPARSED),
    ("The answer is a mixture of things", UNPARSED),
    ("Answer: A mixture", UNPARSED),
    ("Option B is incorrect", UNPARSED),
    ("Option A is correct? No, option B is correct.", UNPARSED),
    ("Let's evaluate each answer:\nA) Paris is wrong\nB) London\n\nHard to say.", UNPARSED),
    ("A) Paris\nB) London\nC) Rome\nD) Oslo", UNPARSED),
    ("<b>B</b>", UNPARSED),
]


@pytest.mark.parametrize(("expected", "text", "verdict"), WHOLE)
def test_whole_numbers(expected, text, verdict):
    assert grading.integer(expected, text).correct is verdict


@pytest.mark.parametrize(("expected", "text", "verdict"), PROSE)
def test_last_number_of_prose(expected, text, verdict):
    assert grading.integer(expected, text, last_number=True).correct is verdict


@pytest.mark.parametrize(("expected", "text", "verdict"), LATEX)
def test_mathematics(expected, text, verdict):
    assert grading.mathematics(expected, text).correct is verdict


@pytest.mark.parametrize(("text", "verdict"), CHOICE)
def test_choices(text, verdict):
    assert grading.choice("B", text, CITIES).correct is verdict


def test_options_with_the_same_words_are_told_by_letter_only():
    twins = {"A": "Paris", "B": "Paris"}
    assert grading.choice("B", "Paris", twins) == grading.UNPARSED
    assert grading.choice("B", "(B) Paris", twins).correct is True


FORMS = ["{}", "{}.", "**{}**", "\\boxed{{{}}}", "$\\boxed{{{}}}$", "Answer: {}", "**Answer: {}**", "#### {}",
         "The answer is {}.", "I had 7 of 9 left.\n\n{}"]


@given(st.integers(-10**12, 10**12), st.sampled_from(["{}", "{:,}"]), st.sampled_from(FORMS), st.integers(1, 10**6))
def test_any_integer_in_any_form(value, style, form, away):
    text = form.format(style.format(value))
    for grade in (grading.integer, grading.mathematics) if "\n" not in form else (grading.integer,):
        assert grade(str(value), text).correct is True
        assert grade(str(value + away), text).correct is False


@given(st.text(alphabet="AB42 .,()\\{}$*\nboxedansweri:#/-=%", max_size=200))
@settings(max_examples=300)
def test_no_text_breaks_a_grader(text):
    for grade in (grading.integer("42", text, last_number=True), grading.choice("B", text, CITIES)):
        assert (grade.correct is None) == (grade.extracted is None)


@pytest.mark.parametrize(
    "piece", ["\\boxed{", "the answer is \\[", "answer: ", "1,", "9", "(", "$", " ", "\n", "A) x\n"])
def test_endless_repetition_is_read_to_its_end(piece):
    # A model in a loop fills its budget with one phrase; reading it in quadratic time would take minutes.
    text = piece * (60_000 // len(piece))
    for grade in (grading.integer("42", text), grading.mathematics("42", text), grading.choice("B", text, CITIES)):
        assert grade.correct is not True


def test_html_is_text():
    grade = grading.mathematics("3", "\\boxed{<script>alert(3)</script>}")
    assert grade == grading.Grade(False, "<script>alert(3)</script>")


def test_boxed_takes_nested_and_escaped_braces():
    assert grading.boxed("\\boxed{\\frac{1}{\\sqrt{2}}} and \\boxed{\\{1, 2\\}}.") == "\\{1, 2\\}"
    assert grading.boxed("\\boxed{\\frac{1}{2}} then \\boxed{3") == "\\frac{1}{2}"
    assert grading.boxed("no box") is None


def test_grading_works_in_any_thread():
    verdicts = []
    answers = [f"\\boxed{{\\frac{{{n}}}{{\\sqrt{{{n * n}}}}}}}" for n in random.Random(0).sample(range(2, 50), 8)]
    threads = [threading.Thread(target=lambda a=answer: verdicts.append(grading.mathematics("1", a).correct))
               for answer in answers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == [True] * 8


def _script(tmp_path, body: str) -> Comparer:
    path = tmp_path / "child.py"
    path.write_text("import json, os, signal, sys\nfor line in sys.stdin:\n    answer = json.loads(line)[1]\n" + body)
    return Comparer(path)


def test_a_comparison_over_its_limit_is_not_equal_and_the_next_one_is_answered(tmp_path):
    comparer = _script(tmp_path, "    if answer == 'hard': os.kill(os.getpid(), signal.SIGPROF)\n"
                                 "    print('true', flush=True)\n")
    assert [comparer("1", "easy"), comparer("1", "hard"), comparer("1", "easy")] == [True, False, True]


def test_a_verdict_that_nobody_waited_for_does_not_answer_the_next_question(tmp_path, monkeypatch):
    comparer = _script(tmp_path, "    print('true' if answer == 'yes' else 'false', flush=True)\n")
    assert comparer("1", "yes")
    child = comparer._child

    class Interrupted:
        def readline(self):
            raise KeyboardInterrupt

    monkeypatch.setattr(child, "stdout", Interrupted())
    monkeypatch.setattr(child, "communicate", child.wait)
    with pytest.raises(KeyboardInterrupt):
        comparer("1", "yes")
    assert comparer("1", "no") is False and child.returncode is not None


def test_a_comparer_that_cannot_run_is_an_error_not_a_verdict(tmp_path):
    comparer = _script(tmp_path, "    sys.exit('no math-verify here')\n")
    with pytest.raises(AsuError, match="no math-verify here"):
        comparer("1", "1")


def test_a_tower_of_powers_ends():
    comparer = Comparer(cpu_s=1.0)
    assert [comparer("3", "9^{9^{9^9}}"), comparer("3", "\\sqrt{9}")] == [False, True]


@pytest.mark.parametrize("same", [
    ["18", r"\$18", "18.0", "18 dollars", "$18$", "x = 18"], [r"\frac{1}{2}", r"\dfrac{1}{2}", "0.5", "1/2"],
    ["(1, 2)", "(1,2)"], ["Paris", "paris", r"\text{Paris}"], ["70,000", "70000"], [r"3\sqrt{2}", r"3 \sqrt{2}"]])
def test_answers_that_say_the_same_are_spelt_the_same(same):
    assert len({grading.spelling(stated) for stated in same}) == 1


def test_answers_that_say_something_else_are_spelt_apart():
    stated = ["18", "-18", "1.8", "18 x", "2x", "x = 1, y = 18", "x = 2, y = 18", r"\frac{1}{18}", "(1, 8)", "B", "b c"]
    assert len({grading.spelling(one) for one in stated}) == len(stated)
