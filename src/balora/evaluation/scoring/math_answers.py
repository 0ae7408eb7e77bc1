r"""The final answer in a worked solution: after "The answer is:", in ``\boxed{}``, or after ``####``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction

_SAID = re.compile(r"the[^\S\n]+(?:final[^\S\n]+)?answer[^\S\n]+is(?:[^\S\n]|\*)*:?", re.IGNORECASE)
_NEXT_SENTENCE = re.compile(r"(?<=\S)(?<!\bM[rs])(?<!\bMrs)(?<!\b[DS][rt])\.\s+(?=[A-Z])")
_DISPLAY = re.compile(r"(?<!\\)\\[()\[\]]")
_MARKED = re.compile(r"####")
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*(\{|\S+)")
_UNSIGNED = r"(?:(?:\d{1,3}(?:,\d{3})+(?!,?\d)|\d+)(?:\.\d+)?|\.\d+)"
_NUMBER = re.compile(
    # The exponent is short, lest a number fill the memory.
    rf"[-+]?{_UNSIGNED}(?:[eE][-+]?\d{{1,2}}(?!\w)|\s*/\s*\d+(?:\.\d+)?)?"
)
_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{\s*(\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))")
_MIXED = re.compile(r"(?<![\d.,/])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.])")
_SIGNED_MONEY = re.compile(r"([-+])\s*\\?[$£€]\s*")
_BASE = re.compile(r"[\d)]_\{?(\d+)\}?")
_UNIT = re.compile(r"(?<![A-Za-z\\])(mm|cm|dm|km|m|in|ft|yd|mi|mg|kg|g|ms|s|min|h)(?![A-Za-z(])")
_OR = re.compile(r",|\bor\b|\band\b")
_WORKING = re.compile(r"(?<=\S)\s+\([^()]*=[^()]*\)")
_WRAPPED = re.compile(r"\\(?:text|mathrm|textbf|mbox)\s*\{([^{}]*)\}")


def final_answer(solution: str) -> str | None:
    r"""The answer that a solution ends on, or None where it names none.

    The last of its kind counts, and the kinds in this order: what follows "The answer is:" or "The final answer is" (to
    the end of the sentence or line, or on the next line), the content of ``\boxed{}``, what follows ``####``.

    Example:
        >>> final_answer("So 3 * 6 = 18.\n#### 18\nThe answer is: $18.")
        '$18'
        >>> final_answer(r"Hence $x = \boxed{\frac{1}{2}}$, as we know.")
        '\\frac{1}{2}'
        >>> final_answer("It is 5, I think.") is None
        True
    """
    return next(_answers(solution), None)


def final_number(solution: str) -> str | None:
    r"""The number that a solution ends on: of the places where `final_answer` looks, the first that holds one.

    Example:
        >>> final_number("If the answer is wrong, tell me.\n#### 18"), final_number("The answer is: eighteen")
        ('18', None)
    """
    return next((number for answer in _answers(solution) if (number := number_in(answer)) is not None), None)


def _answers(solution: str) -> Iterator[str]:
    """What stands where an answer may stand, the likeliest first."""
    said = [_sentence(solution, match.end()) for match in _SAID.finditer(solution)]
    for answer in reversed(said):
        inner = last_boxed(answer)
        if inner or answer:
            yield inner or answer
    boxed = last_boxed(solution)
    if boxed is not None:
        yield boxed
    marked = [_line(solution, match.end()) for match in _MARKED.finditer(solution)]
    yield from (answer for answer in reversed(marked) if answer)


def last_boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed``, its braces balanced.

    Example:
        >>> last_boxed(r"\boxed{1} or rather \boxed{\frac{1}{\sqrt{2}}}.")
        '\\frac{1}{\\sqrt{2}}'
        >>> last_boxed(r"$\boxed 7$")
        '7'
    """
    content = None
    for match in _BOXED.finditer(text):
        found = _braced(text, match.start(1)) if match[1] == "{" else match[1].rstrip("$.,")
        content = found if found is not None else content
    return content


def number_in(answer: str | None) -> str | None:
    r"""The first number in an answer, its thousands separators gone; None where there is none.

    Of an equation it is the first behind the last "=".

    Example:
        >>> number_in("$1,234.50 dollars"), number_in(r"\frac{3}{4}"), number_in("about .5"), number_in("none")
        ('1234.50', '3/4', '.5', None)
        >>> number_in("3 + 15 = $18"), number_in("-$5"), number_in(r"3\frac{1}{2}"), number_in("2e4")
        ('18', '-5', '7/2', '2e4')
    """
    if answer is None:
        return None
    # In "18 (as 6 * 3 = n)" the equation is not what is answered.
    match = _NUMBER.search(_plain(_WORKING.sub("", answer).rsplit("=", 1)[-1]))
    return None if match is None else re.sub(r"[,\s]", "", match[0])


def same_number(one: str | None, other: str | None) -> bool:
    """Whether two numbers, as `number_in` gives them, are equal exactly.

    Example:
        >>> same_number("18.00", "18"), same_number("1/3", "0.33"), same_number(None, "3")
        (True, False, False)
    """
    values = _value(one), _value(other)
    return None not in values and values[0] == values[1]


def same_text(one: str, other: str) -> bool:
    r"""Whether two answers are written alike, up to spaces, ``$``, ``\text``, the sizes of brackets and how a number is put.

    Example:
        >>> same_text(r"\left( 3, \frac{\pi}{2} \right)", r"(3,\dfrac{\pi}{2})"), same_text(r"\text{Evelyn}", "Evelyn")
        (True, True)
    """
    return bool(one.strip()) and (_bare(one) == _bare(other) or same_number(_only_number(one), _only_number(other)))


def _value(number: str | None) -> Fraction | None:
    try:
        top, _, bottom = (number or "").partition("/")
        return Fraction(top) / Fraction(bottom or 1)
    except (ValueError, ZeroDivisionError):
        return None


def contradicts(truth: str, found: str) -> bool:
    r"""Whether two answers differ in what math-verify passes over: bases, units, the kind of brackets, the number of answers,
    and small numbers, which it rounds.

    Example:
        >>> contradicts("2516_8", "2516_7"), contradicts(r"\{3,4\}", "(3,4)"), contradicts("6", "6,6")
        (True, True, True)
        >>> contradicts("2516_8", "2516"), contradicts(r"5\text{ cm}", "5"), contradicts("1/3", "0.333333")
        (False, False, False)
    """
    for pattern in (_BASE, _UNIT):
        one, other = (pattern.findall(_WRAPPED.sub(r"\1", text)) for text in (truth, found))
        if one and other and set(one).isdisjoint(other):
            return True
    sets = [_bare(text.rsplit("=", 1)[-1].rsplit("\\in ", 1)[-1])[:2] for text in (truth, found)]
    if sets in (["\\{", sets[1]], [sets[0], "\\{"]) and any(start[:1] in ("(", "[") for start in sets):
        return True
    value = _value(_only_number(truth))
    if value is None:
        return False
    other_value = _value(_only_number(found))
    if other_value is not None:
        return abs(value - other_value) > abs(value) / 10**5
    # More than one answer, where there is one.
    parts = _OR.split(_plain(found))
    return (len(parts) > 1 and all(map(_NUMBER.search, parts))) or re.search(r"\d\s+\d", _plain(found)) is not None


def _only_number(text: str) -> str | None:
    """The number that a text is, if it is nothing else."""
    whole = _NUMBER.fullmatch(_plain(text.replace("$", "").strip()).strip().rstrip("."))
    return None if whole is None else number_in(whole[0])


def _plain(text: str) -> str:
    """Numbers as one would type them: no LaTeX in them, one kind of minus, mixed fractions added up."""
    text = text.replace("\u2212", "-").replace("\\!", "").replace("{,}", ",")
    text = re.sub(r"(?<=\d)\\,(?=\d{3})", "", text)
    text = _FRACTION.sub(lambda match: " {}/{}".format(*(part for part in match.groups() if part)), text)
    text = _MIXED.sub(lambda match: f"{int(match[1]) * int(match[3]) + int(match[2])}/{match[3]}", text)
    return re.sub(r"^\s*([-+])\s+", r"\1", _SIGNED_MONEY.sub(r"\1", text))


def _bare(text: str) -> str:
    text = _WRAPPED.sub(r"\1", text)
    for what, instead in (("\\left", ""), ("\\right", ""), ("\\dfrac", "\\frac"), ("\\tfrac", "\\frac"), ("\\!", "")):
        text = text.replace(what, instead)
    text = re.sub(r"(?<=\d)\\,(?=\d{3})", "", text)
    text = re.sub(r"(?<=\d)(?:\s|\\[ ,;])+(?=\d)", "~", text)  # "3 2" is not 32
    return re.sub(r"[\s$]|\\[ ,;]", "", text).rstrip(".")


def _sentence(text: str, start: int) -> str:
    """What is said from here: the rest of the line, else the next line that says something."""
    for line in text[start:].split("\n"):
        if line.startswith("#"):  # another kind of answer, or another section
            break
        line = _NEXT_SENTENCE.split(_DISPLAY.sub("", line), maxsplit=1)[0]
        line = _line(line.strip("* \t"), 0).strip("* \t")
        if line.strip("$"):
            return line
    return ""


def _line(text: str, start: int) -> str:
    """The rest of a line, without the full stop that ends it."""
    line = text[start:].split("\n", 1)[0].strip()
    return re.sub(r"(?<=.)\.$", "", line).strip()


def _braced(text: str, start: int) -> str | None:
    depth = 0
    for place in range(start, len(text)):
        if text[place] == "\\":
            continue
        escaped = place > 0 and text[place - 1] == "\\"
        depth += 0 if escaped else {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start + 1 : place].strip()
    return None


__all__ = ["contradicts", "final_answer", "final_number", "last_boxed", "number_in", "same_number", "same_text"]
