"""One colour for each method in every figure, and no curve of one point."""

from __future__ import annotations

from balora.methods import METHODS
from balora.plots.inline_svg import curve_figure, interval_figure, regularizer_figures, single_values
from balora.plots.style import METHOD_MARKS, TERM_COLOURS, marks_of


def lines(count: int, **more: float) -> list[dict[str, float]]:
    return [{"step": step, "task": 1.0 / step, **more} for step in range(1, count + 1)]


def test_a_method_has_one_colour_whatever_else_is_drawn() -> None:
    alone, among = marks_of(["dora"]), marks_of(["lora", "corda", "dora", "dora+reg", "dora, method.rank 8"])
    assert alone["dora"] == among["dora"] == METHOD_MARKS["dora"]
    assert {among[name].colour for name in ("dora", "dora+reg", "dora, method.rank 8")} == {alone["dora"].colour}
    assert len({(mark.marker, str(mark.dash)) for mark in among.values()}) == len(among)
    looks = [(mark.colour, mark.marker) for mark in METHOD_MARKS.values()]
    assert len(set(looks)) == len(METHODS), "no two methods look the same"


def test_one_value_is_no_curve() -> None:
    assert curve_figure([("lora", lines(1))], "task", "task loss") is None
    assert single_values([("lora", lines(1)), ("pissa", lines(3))], "task") == [("lora", 1, 1.0)]
    assert regularizer_figures([("balora", lines(1, consistency=1.0, consistency_weight=0.1))]) == []
    drawn = curve_figure([("lora", lines(1)), ("pissa", lines(3))], "task", "task loss")
    assert drawn is not None and METHOD_MARKS["lora"].colour.lower() not in drawn.svg.lower()


def test_a_part_has_the_colour_of_its_term() -> None:
    rows = [{"step": s, "spectral": float(s), "spectral_weight": 0.1} for s in (1, 2, 3)]
    (alone,), (among,) = (
        regularizer_figures([("balora", rows)]),
        regularizer_figures([("balora", rows), ("pissa", rows)]),
    )
    term, method = TERM_COLOURS["spectral"].lower(), METHOD_MARKS["balora"].colour.lower()
    assert term in alone.svg.lower() and method not in alone.svg.lower()
    assert term in among.svg.lower() and method in among.svg.lower(), (
        "the title has the term's colour, the lines the methods'"
    )


def test_an_interval_that_contains_the_level_is_hollow() -> None:
    hollow = interval_figure("gap", [("lora", 0.1, -0.1, 0.3)], level=0.0).svg
    filled = interval_figure("gap", [("lora", 0.2, 0.1, 0.3)], level=0.0).svg
    colour = METHOD_MARKS["lora"].colour.lower()
    assert f"fill: {colour}" in filled.lower() and f"fill: {colour}" not in hollow.lower()
