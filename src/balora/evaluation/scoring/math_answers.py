r"""Find the final answer in a worked solution, and compare answers as numbers or as text."""

import re
from collections.abc import Iterator
from fractions import Fraction

_ANSWER_PHRASE = re.compile(r"the[^\S\n]+(?:final[^\S\n]+)?answer[^\S\n]+is(?:[^\S\n]|\*)*:?", re.IGNORECASE)
_NEXT_SENTENCE = re.compile(r"(?<=\S)(?<!\bM[rs])(?<!\bMrs)(?<!\b[DS][rt])\.\s+(?=[A-Z])")
_DISPLAY = re.compile(r"(?<!\\)\\[()\[\]]")
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*(\{|\S+)")
_UNSIGNED = r"(?:(?:\d{1,3}(?:,\d{3})+(?!,?\d)|\d+)(?:\.\d+)?|\.\d+)"
_NUMBER = re.compile(
    # At most two digits of exponent: 1e999999999 would fill the memory.
    rf"[-+]?{_UNSIGNED}(?:[eE][-+]?\d{{1,2}}(?!\w)|\s*/\s*\d+(?:\.\d+)?)?"
)
_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{\s*(\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))")
_MIXED = re.compile(r"(?<![\d.,/])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.])")
_SIGNED_MONEY = re.compile(r"([-+])\s*\\?[$£€]\s*")
_BASE = re.compile(r"[\d)]_\{?(\d+)\}?")
_UNIT = re.compile(r"(?<![A-Za-z\\])(mm|cm|dm|km|m|in|ft|yd|mi|mg|kg|g|ms|s|min|h)(?![A-Za-z(])")
_OR = re.compile(r",|\bor\b|\band\b")
_WORKING = re.compile(r"(?<=\S)\s+\([^()]*=[^()]*\)")
_REMARK = re.compile(
    r"(?:not|correct|right|wrong|incorrect|yes|no)\b"
    r"|(?:in|as|to|at|of|that|what|clear|obvious|above|below|given|found|shown|known|unique|simply|therefore|indeed|also|"
    r"expressed|rounded|boxed|reasonable|consistent|positive|negative|an?|the)\b[^\d$\\]*$",
    re.IGNORECASE,
)
_HEADING = re.compile(r"[* ]*(?:\d+[.)]\s+)?[^\W\d]{2}")
_GROUPED = re.compile(r"(?<![\d.,/])([1-9]\d{0,2}(?:(?:[ ~\u00a0\u2009\u202f]|\\[ ,])\d{3})+)(?!\d|[,/]\d)")
_SCALED = re.compile(rf"(?<![\d.,/])({_UNSIGNED})\s*(thousand|million|billion|trillion)\b", re.IGNORECASE)
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_OPERATION = re.compile(r"\d[^=\d]*?(?:[-+*\u00d7\u00f7]|(?<=[\d ])x(?=[\d ])|\\times|\\cdot|\\div)[^=\d]*?\d")
_PERCENT = re.compile(r"\s*(?:\\?%|\bper\s?cent)\.?\s*$")
_BARE_NUMBER = re.compile(
    rf"\s*[-+]?\s*\\?[$£€]?\s*({_NUMBER.pattern})(?:\s*\\?[$£€%])?(?:\s+[^\W\d_]+){{0,3}}\s*\$?\.?\s*"
)
_WORD = re.compile(r"(?<![\\A-Za-z])[^\W\d_]{2,}")
_INFINITY = re.compile(r"\\infty|\\infin(?![a-z])|\u221e")
_WRAPPED = re.compile(r"\\(?:text|mathrm|textbf|mbox)\s*\{([^{}]*)\}")


def final_answer(solution: str) -> str | None:
    r"""Return the final answer of a solution, or None if it has none.

    The markers are "The answer is:" or "The final answer is" (with the rest of the sentence or line, else the next line),
    ``\boxed{}`` (with its content), and ``####`` (with the rest of the line). The last marker in the text counts. A remark
    about the answer ("the answer is correct") and a heading after ``####`` count only if there is nothing else.

    Example:
        >>> final_answer("So 3 * 6 = 18.\n#### 18\nThe answer is: $18.")
        '$18'
        >>> final_answer("The answer is: 17. No: \\boxed{18}. I hope the answer is correct.")
        '18'
        >>> final_answer(r"Hence $x = \boxed{\frac{1}{2}}$, as we know.")
        '\\frac{1}{2}'
        >>> final_answer("It is 5, I think.") is None
        True
    """
    return next(_candidates(solution), None)


def final_number(solution: str) -> str | None:
    r"""Return the number after the last marker of `final_answer` that has one, or None.

    Example:
        >>> final_number("If the answer is wrong, tell me.\n#### 18"), final_number("The answer is: eighteen")
        ('18', None)
    """
    return next((number for answer in _candidates(solution) if (number := parse_number(answer)) is not None), None)


def bare_number(text: str) -> str | None:
    r"""Return the number if the text is a number, perhaps with a currency, a percent sign or a unit; else None.

    Example:
        >>> bare_number("$1,234.50"), bare_number("18 dollars"), bare_number("3 + 4 = 7"), bare_number("She has 7.")
        ('1234.50', '18', None, None)
    """
    return parse_number(text) if _BARE_NUMBER.fullmatch(_plain_numbers(text)) else None


def bare_answer(text: str) -> str | None:
    r"""Return the text if it is an answer and no worked solution: one line of at most three words; else None.

    Example:
        >>> bare_answer(r"$\frac{1}{2}$"), bare_answer("all real numbers"), bare_answer("So we have 7 of them.")
        ('$\\frac{1}{2}$', 'all real numbers', None)
    """
    text = text.strip()
    return text if text and "\n" not in text and len(_WORD.findall(_WRAPPED.sub("", text))) <= 3 else None


def _candidates(solution: str) -> Iterator[str]:
    """Yield the possible final answers, the most likely first."""
    found = []
    for match in _ANSWER_PHRASE.finditer(solution):
        answer = _rest_of_sentence(solution, match.end())
        remark = not match[0].endswith(":") and _REMARK.match(answer)
        found.append((not remark, match.start(), last_boxed(answer) or answer))
    boxes = _BOXED.finditer(solution)
    found.extend((True, match.start(), _boxed_content(solution, match) or "") for match in boxes)
    for match in re.finditer("#{4,}", solution):
        answer = _rest_of_line(solution[match.end() :])
        found.append((not _HEADING.match(answer), match.start(), answer))
    yield from (answer for *_, answer in sorted(found, key=lambda entry: entry[:2], reverse=True) if answer)


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last ``\boxed``, with balanced braces.

    Example:
        >>> last_boxed(r"\boxed{1} or rather \boxed{\frac{1}{\sqrt{2}}}.")
        '\\frac{1}{\\sqrt{2}}'
        >>> last_boxed(r"$\boxed 7$")
        '7'
    """
    content = None
    for match in _BOXED.finditer(text):
        found = _boxed_content(text, match)
        content = found if found is not None else content
    return content


def _boxed_content(text: str, match: re.Match[str]) -> str | None:
    return _balanced_braces(text, match.start(1)) if match[1] == "{" else match[1].rstrip("$.,")


def parse_number(answer: str | None) -> str | None:
    r"""Return the first number in an answer without thousands separators, or None.

    In an equation it is the first number after the last "=", or before it if a calculation follows.

    Example:
        >>> parse_number("$1,234.50 dollars"), parse_number(r"\frac{3}{4}"), parse_number("about .5"), parse_number("none")
        ('1234.50', '3/4', '.5', None)
        >>> parse_number("3 + 15 = $18"), parse_number("-$5"), parse_number(r"3\frac{1}{2}"), parse_number("2e4")
        ('18', '-5', '7/2', '2e4')
        >>> parse_number("15 = 3 * 5"), parse_number("1 000"), parse_number("$2 million")
        ('15', '1000', '2000000')
    """
    if answer is None:
        return None
    # The equation in parentheses of "18 (as 6 * 3 = n)" is not the answer.
    sides = _WORKING.sub("", answer).split("=")
    results = [side for side in sides if _NUMBER.search(side) and not _OPERATION.search(side) and "_" not in side]
    side = results[-1] if results and _OPERATION.search(sides[-1]) else sides[-1]
    match = _NUMBER.search(_plain_numbers(side))
    return None if match is None else re.sub(r"[,\s]", "", match[0])


def same_number(one: str | None, other: str | None) -> bool:
    """Return True if two numbers, as `parse_number` returns them, are exactly equal.

    Example:
        >>> same_number("18.00", "18"), same_number("1/3", "0.33"), same_number(None, "3")
        (True, False, False)
    """
    values = _value(one), _value(other)
    return None not in values and values[0] == values[1]


def same_text(one: str, other: str) -> bool:
    r"""Return True if two answers are written alike.

    Spaces, ``$``, ``\text``, sizes of brackets and notations of a number are ignored. A percentage is equal to its number
    with or without the percent sign, and to the fraction that it means.

    Example:
        >>> same_text(r"\left( 3, \frac{\pi}{2} \right)", r"(3,\dfrac{\pi}{2})"), same_text(r"\text{Evelyn}", "Evelyn")
        (True, True)
        >>> same_text(r"7.2\%", "7.2"), same_text(r"7.2\%", "0.072"), same_text(r"7.2\%", "7.2 percent")
        (True, True, True)
    """
    bare, percent = zip(
        *(_PERCENT.subn("", _WRAPPED.sub(r"\1", text).replace("$", "")) for text in (one, other)), strict=True
    )
    first, second = (_value(_as_number(text)) for text in bare)
    same_value = False
    if first is not None and second is not None:
        same_value = first == second or (
            percent[0] != percent[1] and first / 100 ** percent[0] == second / 100 ** percent[1]
        )
    return bool(one.strip()) and (same_value or _normalize(one) == _normalize(other))


def _value(number: str | None) -> Fraction | None:
    try:
        top, _, bottom = (number or "").partition("/")
        return Fraction(top) / Fraction(bottom or 1)
    except (ValueError, ZeroDivisionError):
        return None


def contradicts(truth: str, found: str) -> bool:
    r"""Return True if two answers differ in something that math-verify ignores.

    It ignores bases, units, the kind of brackets (also at infinity) and the number of answers, and it rounds small numbers.

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
    sets = [_normalize(text.rsplit("=", 1)[-1].rsplit("\\in ", 1)[-1])[:2] for text in (truth, found)]
    if sets in (["\\{", sets[1]], [sets[0], "\\{"]) and any(start[:1] in ("(", "[") for start in sets):
        return True
    ends = [_ends_at_infinity(text) for text in (truth, found)]
    if all(ends) and ends[0] != ends[1]:
        return True
    value = _value(_as_number(truth))
    if value is None:
        return False
    other_value = _value(_as_number(found))
    if other_value is not None:
        return abs(value - other_value) > abs(value) / 10**5
    # Several answers where the true answer is one number.
    plain = _plain_numbers(found)
    parts = _OR.split(plain)
    return (len(parts) > 1 and all(map(_NUMBER.search, parts))) or re.search(r"\d\s+\d", plain) is not None


def _ends_at_infinity(text: str) -> set[str]:
    """Return the kinds of brackets that stand beside an infinity."""
    plain = _INFINITY.sub("@", _normalize(text))
    return {
        "open" if bracket in "()" else "closed"
        for pair in re.findall(r"([\[(])-@|@([\])])", plain)
        for bracket in pair
        if bracket
    }


def _as_number(text: str) -> str | None:
    """Return the number if the text is a number and nothing else."""
    match = _NUMBER.fullmatch(_plain_numbers(text.replace("$", "").strip()).strip().rstrip("."))
    return None if match is None else parse_number(match[0])


def _plain_numbers(text: str) -> str:
    """Rewrite numbers without LaTeX, with an ASCII minus, and mixed fractions as one fraction."""
    text = re.sub(r",\s*\\!\s*(?=\d{3})", ",", text)
    text = text.replace("\u2212", "-").replace("\\!", "").replace("{,}", ",")
    text = re.sub(r"(?<=\d)\\,(?=\d{3})", "", text)
    text = _GROUPED.sub(lambda match: re.sub(r"\D", "", match[1]), text)
    text = _SCALED.sub(lambda match: str(Fraction(match[1].replace(",", "")) * _SCALES[match[2].lower()]), text)
    text = _FRACTION.sub(lambda match: " {}/{}".format(*(part for part in match.groups() if part)), text)
    text = _MIXED.sub(lambda match: f"{int(match[1]) * int(match[3]) + int(match[2])}/{match[3]}", text)
    return re.sub(r"^\s*([-+])\s+", r"\1", _SIGNED_MONEY.sub(r"\1", text))


def _normalize(text: str) -> str:
    text = re.sub(r"\\left|\\right|\\!", "", _WRAPPED.sub(r"\1", text))
    text = re.sub(r"(?<=\d)\\,(?=\d{3})", "", re.sub(r"\\[dt]frac", r"\\frac", text))
    text = re.sub(r"(?<=\d)(?:\s|\\[ ,;])+(?=\d)", "~", text)  # "3 2" must not become 32
    return re.sub(r"[\s$]|\\[ ,;]", "", text).rstrip(".")


def _rest_of_sentence(text: str, start: int) -> str:
    """Return the rest of the sentence or line from ``start``, else the next line with text."""
    for line in text[start:].split("\n"):
        if line.startswith("#"):  # an answer after ####, or a heading
            break
        line = _NEXT_SENTENCE.split(_DISPLAY.sub("", line), maxsplit=1)[0]
        line = _rest_of_line(line.strip("* \t")).strip("* \t")
        if line.strip("$"):
            return line
    return ""


def _rest_of_line(text: str) -> str:
    """Return the text up to the end of its first line, without a final full stop."""
    return re.sub(r"(?<=.)\.$", "", text.split("\n", 1)[0].strip()).strip()


def _balanced_braces(text: str, start: int) -> str | None:
    depth = 0
    for index in range(start, len(text)):
        if text[index] == "\\":
            continue
        escaped = index > 0 and text[index - 1] == "\\"
        depth += 0 if escaped else {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return text[start + 1 : index].strip()
    return None
