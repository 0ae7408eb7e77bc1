"""`balora methods`: the list fits the screen, one method is shown with its options, a misspelt name gets a suggestion."""

from __future__ import annotations

import pytest

from balora.methods.registry import METHODS


@pytest.mark.parametrize("columns", ["80", "100", "200"])
def test_the_list_names_every_method_and_fits(balora, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    outcome = balora("methods")
    assert outcome.status == 0
    lines = outcome.out.splitlines()
    assert max(map(len, lines)) <= min(int(columns), 100)
    named = {line.split(" ")[0] for line in lines}
    assert METHODS.keys() <= named
    for method in METHODS.values():
        assert method.summary.split()[0] in outcome.out


@pytest.mark.parametrize("name", METHODS)
def test_one_method_is_shown_with_its_options_and_their_defaults(balora, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "100")
    outcome = balora("methods", name)
    assert outcome.status == 0 and max(map(len, outcome.out.splitlines())) <= 100
    text = " ".join(outcome.out.split())
    method = METHODS[name]
    assert method.paper.split(",")[0] in text
    for option, known in method.options.items():
        (line,) = [line for line in outcome.out.splitlines() if f"method.{option} " in line]
        assert ("-" if known.default is None else str(known.default)) in line.split()[1:]
    assert ("no options of its own" in text) == (not method.options)


@pytest.mark.parametrize("columns", ["60", "80"])
@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.options])
def test_names_of_options_are_not_cut_on_a_narrow_screen(balora, monkeypatch, name, columns):
    monkeypatch.setenv("COLUMNS", columns)
    out = balora("methods", name).out
    assert "…" not in out and max(map(len, out.splitlines())) <= int(columns)
    words = set(out.split())
    assert {f"method.{option}" for option in METHODS[name].options} <= words
    assert {str(option.default) for option in METHODS[name].options.values() if option.default is not None} <= words


def test_a_misspelt_name_gets_a_suggestion(balora):
    outcome = balora("methods", "pisa")
    assert outcome.status == 2
    assert "There is no method 'pisa'. Did you mean 'pissa'?" in outcome.err
    assert "Traceback" not in outcome.err
