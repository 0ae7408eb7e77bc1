"""A password in a URL is neither accepted by a config, which the run directory keeps, nor shown in a message."""

from __future__ import annotations

import pytest

from balora.config.run_config import RunConfig
from balora.errors import BALoraError, hide_passwords

BASE = {"model": "m", "task": "generation", "data": {"train": "d.jsonl", "text": "story"}, "output": "out"}
URLS = [
    "https://me:s3cret@host.example/rows.jsonl", "s3://key:s3cret@bucket/rows", "https://host/rows.jsonl?token=s3cret",
    "https://host/r?a=1&X-Amz-Signature=s3cret&b=2", "ftp://:s3cret@host/x", "https://host/r?access_token=s3cret#x",
    "https://me:s3@cret@host/x",
]  # fmt: skip


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("key", ["model", "data.train", "data.eval", "training.run_name", "output", "data.labels"])
def test_a_config_refuses_it_and_does_not_show_it(key: str, url: str) -> None:
    section, _, name = key.rpartition(".")
    value = [url, "b"] if key == "data.labels" else url
    changed = {**BASE, section: {**BASE.get(section, {}), name: value}} if section else {**BASE, key: value}
    with pytest.raises(BALoraError) as found:
        RunConfig.from_dict(changed)
    assert f"{key}{'.0' if key == 'data.labels' else ''} is a URL with a password or token" in str(found.value)
    assert "s3cret" not in str(found.value) and "cret@" not in str(found.value)


@pytest.mark.parametrize(
    "text",
    [
        "https://host/rows.jsonl",
        "https://host:8000/v1",
        "a:b@c",
        "https://me@host/x",
        "Q: {prompt}? token=5",
        "s3://b/k?v=1",
    ],
)
def test_other_addresses_and_texts_are_unchanged(text: str) -> None:
    assert hide_passwords(text) == text
    RunConfig.from_dict({**BASE, "training": {"run_name": text}})


@pytest.mark.parametrize("url", URLS)
def test_an_error_hides_it_wherever_it_comes_from(url: str) -> None:
    assert "s3cret" not in str(BALoraError(f"{url} could not be reached (see {url})."))


@pytest.mark.parametrize("url", URLS)
def test_the_judges_url_is_refused_with_one(url: str) -> None:
    from balora.cli.options import check_judge

    with pytest.raises(BALoraError, match=r"--judge-url has a password or token.*OPENAI_API_KEY") as found:
        check_judge(url, "judge")
    assert "s3cret" not in str(found.value)
    check_judge("http://localhost:8000/v1", "judge")
