"""Old names keep working and warn with the new ones."""

from __future__ import annotations

import pytest

from balora.deprecation import deprecated_keywords


@deprecated_keywords(say="log")
def run(config: str, log: str = "none") -> tuple[str, str]:
    return config, log


def test_an_old_keyword_works_with_a_warning() -> None:
    with pytest.warns(DeprecationWarning, match="run: the argument say is now log"):
        assert run("a", say="b") == ("a", "b")


def test_new_keywords_and_positions_do_not_warn() -> None:
    assert run("a", log="b") == run("a", "b") == ("a", "b")
