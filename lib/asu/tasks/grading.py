r"""From the visible text of an answer to a verdict: what was stated, and is it right.

An answer counts only where the text states one. In this order, and within each the last one wins:
1. a complete ``\boxed{}``;
2. a marked answer: "#### 42", "Answer: 42", "the answer is 42"; for choices also "option B is correct"
   ("the answer is not B" takes back what was stated before it);
3. the answer alone: the whole text, or a last line that is nothing but a number or a letter;
4. where `last_number` is set (GSM8K, as is customary for it): the last number of the prose.
Text with none of these is unparsed. Nothing is interpreted but the text: HTML in it is text like any other.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from asu.tasks.equality import equal


@dataclass(frozen=True)
class Grade:
    """`correct` and `extracted` are None where the text states no answer."""

    correct: bool | None
    extracted: str | None


UNPARSED = Grade(None, None)

_LONGEST = 1000  # of an answer [characters]; also keeps repetitive texts cheap to read
_DIGITS = r"(?:\d{1,3}(?:[,\s]\d{3})+(?!\d)|\d+)"  # \s: thin and no-break spaces separate thousands too
_NUMBER = rf"[-+]?\s*(?:\\?[$€£])?\s*-?(?:{_DIGITS}(?:\.\d*)?(?:\s*/\s*\d+)?|\.\d+)"
_PROSE_NUMBER = re.compile(r"(?<!not )-?(?<![\w.])(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:/\d+)?")
_UNIT = r"\s*(?:\\?%|°|\^\{?\\circ\}?)?"
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|mathit)\s*\{([^{}]*)\}")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\{\w+\}")
# Dollar signs as Pandoc reads them, so that two prices are not a formula.
_MATHS = re.compile(r"\s*(?:\$\$(.+?)\$\$|\$(?!\s)([^$\n]+?)(?<!\s)\$(?!\d)|\\\((.+?)\\\)|\\\[(.+?)\\\])", re.DOTALL)
_TO = r"(?:\s+(?:to|for|of)\s+(?:the|this|that)\s+[\w' -]{1,40}?)?"
_FILLER = (r"(?:\s*[:=])?\s*(?:(?:therefore|thus|hence|then|so|simply|just|now|indeed|clearly|approximately|about|"
           r"equal to|given by|option|choice|letter)\b[\s,:]*)*")
_HEADING = r"^[ \t]*(?:final |correct )?answer[ \t]*$"
_MARK = rf"(?:####|{_HEADING}|\b{{nouns}}\b{_TO}\s*(?:\b(?:is|must be|should be|would be)\b|[:=])){_FILLER}"
_ANSWER = re.compile(_MARK.replace("{nouns}", "answer"), re.IGNORECASE | re.MULTILINE)
_CHOICE = re.compile(
    _MARK.replace("{nouns}", "(?:answer(?: choice| option)?|(?:correct|right|best|final|my) (?:choice|option))"),
    re.IGNORECASE | re.MULTILINE)
_LIST = re.compile(r"(?:^[ \t]{0,8}(?:[-*][ \t]{0,4})?\(?[A-H][).:]\s[^\n]*\n*){2,}", re.MULTILINE)
_NEGATION = re.compile(r"\s*(?:not|neither|never|n't)\b", re.IGNORECASE)


def boxed(text: str) -> str | None:
    r"""Content of the last complete, non-empty ``\boxed{}`` or ``\fbox{}``, braces nested to any depth."""
    open_braces, last = [], (-1, None)
    for match in re.finditer(r"(\\f?box(?:ed)?\s*)?\{|\}|\\[{}]", text):
        if match[0].endswith("{") and match[0] != "\\{":
            open_braces.append(match.end() if match[1] else None)
        elif match[0] == "}" and open_braces:
            start = open_braces.pop()
            if start is not None and start > last[0] and (content := text[start:match.start()].strip()):
                last = start, content
    return last[1]


def number(text: str) -> Fraction | None:
    """The number that `text` is: 70,000, $70{,}000$, 70 000, 3/4, 42.0, x = 5, 42 %; None if it is anything else."""
    text = re.sub(r"^[A-Za-z]\w*\s*=\s*", "", _tidy(text))
    match = re.fullmatch(f"({_NUMBER}){_UNIT}", text)
    return _value(match[1]) if match else None


def same_value(expected: str, stated: str) -> bool:
    """Whether two expressions are equal; 75 % is 0.75, and 42 % is 42 where 42 is asked for.

    Plain numbers are compared exactly here; all else is math-verify's question.
    """
    left, right = number(expected), number(stated)
    if left is not None and right is not None:
        return left == right or ("%" in stated and left == right / 100)
    if len(stated) > _LONGEST:  # a repetition, not an answer: no expected one is a tenth as long
        return False
    bases = [match and match[1] for match in (re.search(r"_\{?(\d+)\}?$", _tidy(text)) for text in (expected, stated))]
    if all(bases) and bases[0] != bases[1]:  # math-verify drops the base: 52_8 and 52_9 would be the same
        return False
    return equal(_tidy(expected), _tidy(stated))


def spelling(stated: str) -> str:
    r"""One spelling for answers that say the same: 18, \$18, 18.0 and "18 dollars"; else without spaces and capitals.

    For counting answers nobody has the right one to compare with. Expressions that are equal but written otherwise,
    1/(2a) and a^{-1}/2, stay apart.
    """
    text = _WRAPPED.sub(r" \1 ", _tidy(stated)).strip()
    words = re.fullmatch(rf"({_NUMBER}{_UNIT})(?:\s+[A-Za-z]{{3,}})+", text)
    value = number(words[1] if words else text)
    return re.sub(r"\s+", "", text).casefold() if value is None else str(value)


def integer(expected: str, text: str, last_number: bool = False) -> Grade:
    """Grade a text against a whole number; units and words after the number are allowed ("42 eggs")."""
    text = _plain(text)
    stated = content = boxed(text)
    if stated is None:
        stated = _marked(text, _ANSWER, _whole_number)
    if stated is None:
        lines = text.strip().splitlines()
        if lines and (number(lines[-1]) is not None or len(lines) == 1 and _leading_number(lines[0]) is not None):
            stated = lines[-1]
    if stated is None and last_number and (found := _PROSE_NUMBER.findall(text)):
        stated = found[-1]
    if stated is None:
        return UNPARSED
    value = _leading_number(stated)
    if value is None and content:
        value = _only_number(stated)
    correct = value == number(expected) if value is not None else same_value(expected, stated)
    return Grade(correct, _tidy(stated))


def mathematics(expected: str, text: str) -> Grade:
    """Grade a text against a LaTeX answer: numbers, expressions, tuples, intervals, sets, matrices, words."""
    text = _plain(text)
    stated = boxed(text) or _marked(text, _ANSWER, _expression)
    if stated is None and len(text.strip().splitlines()) == 1:
        stated = _expression(text)
    if stated is None:
        return UNPARSED
    return Grade(same_value(expected, stated), _tidy(stated))


def choice(expected: str, text: str, options: dict[str, str]) -> Grade:
    """Grade a text against a letter. `options`: letter → text, so that an option's own words count as its letter."""
    text = _plain(text)
    content = boxed(text)
    stated = content and _letter(content, options)
    text = _LIST.sub("", text)  # going through the options one a line states none of them
    if not stated:
        stated = _marked(text, _CHOICE, lambda span: _letter(span, options)) or _called_right(text)
    if not stated:
        lines = [line.strip() for line in text.strip().splitlines()]
        alone = [line for line in lines if re.fullmatch(r"\(?[A-Z]\)?\.?", line)]
        if len(lines) == 1:
            stated = _letter(lines[0], options)
        elif len(alone) == 1 and alone[0] == lines[-1]:
            stated = _letter(alone[0], options)
    return Grade(stated == expected, stated) if stated else UNPARSED


def _plain(text: str) -> str:
    """Without Markdown emphasis; a ** between two word characters is a power and stays."""
    return re.sub(r"(?<!\w)(?:\*\*|__)|(?:\*\*|__)(?!\w)|`|^#{1,3} ", "", text, flags=re.MULTILINE)


def _tidy(text: str) -> str:
    """One spelling for spaces, minus signs and thousands marks; no math delimiters, no closing full stop."""
    for old, new in (("−", "-"), ("\\!", ""), ("\\,", " "), ("\\;", " "), ("{,}", ",")):
        text = text.replace(old, new)
    text = re.sub(r"\\(?:left|right)(?![A-Za-z])", "", text).strip().rstrip(".,;").strip()
    if match := _MATHS.fullmatch(text):
        text = next(filter(None, match.groups())).strip().rstrip(".,;").strip()
    text = re.sub(r"^(-?)\\[dt]?frac\s*\{(-?\d+)\}\s*\{(\d+)\}$", r"\1\2/\3", text)
    return re.sub(r"^\\text\s*\{([^{}]*)\}$", r"\1", text)


def _value(digits: str) -> Fraction | None:
    bare = re.sub(r"[\s,$€£\\]", "", digits).rstrip(".").removeprefix("+").replace("./", "/")
    top, _, bottom = bare.partition("/")
    if bare.count("-") > 1 or len(bare) > _LONGEST or (bottom and int(bottom) == 0):  # int() refuses endless digits
        return None
    return Fraction(top) / Fraction(bottom or 1)


def _words_as_text(span: str) -> str:
    return re.sub(r"\s+", " ", _WRAPPED.sub(r" \1 ", _tidy(span))).rsplit("=", 1)[-1].strip()


def _leading_number(span: str) -> Fraction | None:
    """The number a short statement begins with: "42 eggs per day", "$18", "16 - 7 = 9"; none in "42 or 43"."""
    text = _words_as_text(span)
    match = re.match(rf"({_NUMBER}){_UNIT}(?=$|[,;:.)] |\s+[A-Za-z(]|°)", text)
    return _value(match[1]) if match and not re.match(r"\s*(?:or|and|to)\b", text[match.end():]) else None


def _only_number(span: str) -> Fraction | None:
    """The single number among words, "Janet has 42 eggs"; next to LaTeX or an operator it is part of an expression."""
    text = _words_as_text(span)
    found = _PROSE_NUMBER.findall(text)
    return _value(found[0]) if len(found) == 1 and re.fullmatch(r"[\w\s$€£%,.'’-]*", text) else None


def _whole_number(span: str) -> str | None:
    """`span` where it begins with a number or is an expression with one; None where it only speaks about the answer."""
    expression = _expression(span)
    stated = _leading_number(span) is not None or (expression and re.search(r"\d", expression))
    return (expression or span) if stated else None


def _expression(span: str) -> str | None:
    """The mathematics or the word or two that `span` is, or None where it is prose."""
    if match := _MATHS.match(span):
        return next(filter(None, match.groups()))
    words = re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}", _ENVIRONMENT.sub("", _WRAPPED.sub("", span)))
    if len(words) <= 1 or re.match(rf"{_NUMBER}(?:\s+[A-Za-z]+)+\W*$", span.strip()):
        return span.strip() or None
    return None


def _marked(text: str, mark: re.Pattern, read) -> str | None:
    """What the last mark states that `read` can read; a later negation takes it back."""
    stated = None
    for match in mark.finditer(text):
        rest = text[match.end():match.end() + _LONGEST]
        maths = _MATHS.match(rest)
        span = maths[0].strip() if maths else re.split(r"\.\s|\n", rest.lstrip(), maxsplit=1)[0]
        negation = _NEGATION.match(span)
        if negation and read(span[negation.end():]):
            stated = None
        else:
            stated = read(span) or stated
    return stated


def _letter(span: str, options: dict[str, str]) -> str | None:
    """The one letter that `span` names, alone, before a delimiter or a reason, or by or after its option's words."""
    span = _WRAPPED.sub(r"\1", _tidy(span)).strip()
    said = span.casefold().strip(" .\"'")
    named = [letter for letter, words in options.items() if said and words.casefold().strip(" .\"'") == said]
    if named:  # two options with the same words: the words alone name neither
        return named[0] if len(named) == 1 else None
    after = re.fullmatch(r"(.+?)\s*\(([A-Ha-h])\)\.?", span, re.DOTALL)
    if after:  # "London (B)": words and letter must agree
        letter = after[2].upper()
        if options.get(letter, "").casefold().strip(" .\"'") == after[1].casefold().strip(" .\"'"):
            return letter
    match = re.match(r"(?:option|choice|answer)?\s*[\[({]?\s*([A-Ha-h])(?![\w'’])\s*(.*)", span,
                     re.DOTALL | re.IGNORECASE)
    if not match:
        return None
    letter, rest = match[1].upper(), match[2]
    if re.match(r"[\])}]?\s*(?:or|and|/|,|&|vs\.?)\s*[\[(]?[A-Z]\b", rest):  # two letters are no verdict
        return None
    delimited = re.match(r"$|[\])}.:,;*–—-]|(?:because|since|as|due|which|for)\b", rest)
    # A lower-case letter followed by words is an article ("a mixture") unless a bracket marks it.
    if match[1].islower() and not re.fullmatch(r"[.\s]*|[\])}.:].*", rest, re.DOTALL):
        return None
    words = options.get(letter, "").casefold()
    return letter if delimited or (words and rest.casefold().startswith(words)) else None


def _called_right(text: str) -> str | None:
    """The letter of "option B is correct" or "(C) is the right answer": the last such sentence, if all agree."""
    found = re.findall(r"(?:\b(?:option|choice|answer)\s+\(?|\()([A-Z])\)?\s+is\s+(?:therefore\s+|thus\s+)?(?:the\s+)?"
                       r"(?:correct|right|best)\b", text, re.IGNORECASE)
    letters = {letter.upper() for letter in found}
    return letters.pop() if len(letters) == 1 else None
