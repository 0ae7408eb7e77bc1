"""Page of `balora report`: content and warnings for synthetic run directories, refused input, and the look in a browser."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import yaml

from balora.errors import BALoraError
from balora.report.findings import find_warnings
from balora.report.page import report
from balora.report.sections import read_sections
from browser import open_browser

LOADS = ('src="http', "src='http", "url(http", "<script", "<link", "@import")
VERSIONS = {"python": "3.11", "torch": "2.13"}
COMMIT = {"id": "0123456789abcdef", "dirty": False}


def write_run(
    directory: Path, *, method="balora", seed=1, task="classification", accuracy: float | None = 0.5, regularization=None,
    lines=None, status="finished", error=None, labels=("a", "b", "c"), commit=COMMIT, text="sentence",
    notices=None,
) -> Path:  # fmt: skip
    directory.mkdir(parents=True)
    own = {"consistency": 0.15, "diversity": 0.03, "spectral": 0.03, "spectral_rank": 2} if method == "balora" else {}
    config = {
        "model": "tiny", "task": task, "data": {"train": "train.tsv", "text": text},
        "method": {"name": method, "rank": 4, "alpha": 4},
        "regularization": own if regularization is None else regularization, "seed": seed, "output": str(directory),
    }  # fmt: skip
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    metrics = {"train_loss": 1.0, "train_runtime": 9.0, "peak_memory_mib": 100.0}
    metrics |= {} if accuracy is None else {"eval_accuracy": accuracy, "eval_runtime": 1.0}
    provenance = {
        "time": "2026-01-01T00:00:00+00:00",
        "versions": VERSIONS,
        "hardware": {"device": "a chip", "cores": 2},
        "commit": commit,
    }
    record = {
        "status": status,
        "error": error,
        "provenance": provenance,
        "data": {"digest": "d" * 64, "labels": list(labels)},
        **({} if notices is None else {"notices": notices}),
    }
    (directory / "run.json").write_text(
        json.dumps({**record, **({"metrics": metrics} if status == "finished" else {})})
    )
    (directory / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in (logged() if lines is None else lines))
    )
    return directory


def logged(count=6, **changed):
    """Metric lines in which every term changes; ``changed`` replaces a key by a function of the step."""
    plain = {"task": lambda s: 2.0 / s, "grad_norm": lambda s: 1.0 + s}
    for place, term in enumerate(("consistency", "diversity", "spectral"), 1):
        plain |= {term: lambda s, p=place: p + 0.1 * s, f"{term}_weight": lambda s, p=place: 0.01 * p}
    values = {**plain, **changed}
    return [{"step": s, **{k: f(s) for k, f in values.items() if f is not None}} for s in range(1, count + 1)]


def page_of(directory: Path, **options) -> str:
    html = report(directory, **options).read_text()
    for loads in LOADS:
        assert loads not in html, "the page loads nothing"
    return html


def warnings(html: str) -> list[str]:
    block = re.search(r'class="warnings".*?</div>', html, re.DOTALL)
    return re.findall(r"<li>(.*?)</li>", block[0]) if block else []


def test_a_run_shows_its_settings_scores_regularizers_and_provenance(tmp_path):
    html = page_of(write_run(tmp_path / "run", accuracy=0.8125))
    assert html.count("<svg") == 5, "task loss, gradient norm, three terms"
    for text in (
        "0.8125",
        "spectral 0.03",
        "0123456789ab",
        "a chip",
        "torch 2.13",
        "cross-entropy, nats",
        "dddddddddddd",
    ):
        assert text in html
    assert [w for w in warnings(html) if "seed" not in w] == []
    assert (tmp_path / "run" / "report.html").is_file()


def test_the_page_is_reproducible(tmp_path):
    run = write_run(tmp_path / "run")
    first, second = (re.sub(r"at 20\S+", "", page_of(run)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"status": "failed", "error": "CUDA is out of memory."}, "The run failed: CUDA is out of memory."),
        ({"status": "running"}, "not finished"),
        ({"accuracy": None}, "There is no evaluation"),
        ({"accuracy": math.nan}, "accuracy is not a number"),
        ({"lines": logged(task=lambda s: math.nan if s > 3 else 1.0)}, "task is not finite from step 4 on"),
        ({"lines": logged(task=lambda s: math.inf if s == 3 else 1.0)}, "task is not finite at step 3"),
        ({"lines": logged(spectral=lambda s: -1.0 + 1e-7 * s)}, "The spectral term did nothing: it was constant at -1"),
        ({"commit": {"id": "abcdef0123456789", "dirty": True}}, "uncommitted changes (on top of abcdef012345)"),
        ({"commit": None}, "commit is not known"),
        (
            {"labels": ("a", "b"), "lines": logged(spectral=None, spectral_weight=lambda s: 0.0)},
            "The spectral term has weight 0.03 but was switched off: it is always 1 (eq. 7) with 2 outputs and spectral_rank 2.",
        ),
        (
            {"lines": logged(diversity=None, diversity_weight=lambda s: 0.0)},
            "The diversity term has weight 0.03 but did nothing: its scheduled weight was 0 at every logged step.",
        ),
    ],
)
def test_each_problem_gives_its_warning(tmp_path, changes, sentence):
    sound, found = (
        find_warnings(read_sections(run)[0])
        for run in (write_run(tmp_path / "a"), write_run(tmp_path / "b", **changes))
    )
    assert any(sentence in warning for warning in found), found
    assert not any(sentence in warning for warning in sound)


def test_a_notice_of_the_run_about_a_term_is_shown_once(tmp_path):
    notice = "The spectral term is constant: a notice of the objective."
    off = {"labels": ("a", "b"), "lines": logged(spectral=None, spectral_weight=lambda s: 0.0)}
    flat = {"lines": logged(spectral=lambda s: -1.0)}
    for at, changes in enumerate((off, flat)):
        found = find_warnings(read_sections(write_run(tmp_path / f"notice {at}", notices=[notice], **changes))[0])
        assert [warning for warning in found if "spectral" in warning] == [notice]
    # If run.json has notices but none about the term, the page does not guess one from the config.
    found = find_warnings(read_sections(write_run(tmp_path / "none", notices=[], **off))[0])
    assert [warning for warning in found if "spectral" in warning and "scheduled weight was 0" not in warning] == []


def test_runs_of_a_directory_are_grouped_by_seed_and_compared(tmp_path):
    for method, shift in (("pissa", 0.0), ("balora", 0.1)):
        for seed in (1, 2, 3):
            write_run(
                tmp_path / f"{method}-{seed}",
                method=method,
                seed=seed,
                accuracy=0.5 + shift * (1 + seed % 2 / 100) + 0.01 * seed,
            )
    html = page_of(tmp_path, baseline="pissa")
    assert "0.5200 ± 0.0100" in html and "0.6207 ± 0.0" in html
    assert "+0.1007 [+0.0992, +0.1021] better" in html, "the paired difference with its interval"
    assert "over 3 seeds" in html
    assert warnings(html) == []
    write_run(tmp_path / "lora-1", method="lora", seed=1)
    assert "One seed only for lora." in warnings(page_of(tmp_path))
    with pytest.raises(BALoraError, match=r"has no runs of pisa\. Did you mean 'pissa'\?"):
        report(tmp_path, baseline="pisa")


def test_a_baseline_need_not_be_in_every_section(tmp_path):
    for directory, methods in (("one", ("pissa", "balora")), ("other", ("lora", "dora"))):
        for method in methods:
            for seed in (1, 2):
                write_run(tmp_path / directory / f"{method}-{seed}", method=method, seed=seed, accuracy=0.5)
    html = page_of(tmp_path, baseline="pissa")
    assert html.count("<section") == 2 and "Difference to pissa" in html and "Difference to lora" not in html
    with pytest.raises(BALoraError, match=r"has no runs of milora\."):
        report(tmp_path, baseline="milora")


def test_a_comparison_shows_its_rows_its_notes_and_its_failures(tmp_path):
    rows = []
    for variant, score in (("pissa", 0.5), ("balora", 0.75), ("dora", None)):
        name = f"{variant}_seed-1"
        if score is not None:
            write_run(tmp_path / "runs" / name, method=variant, accuracy=score)
        rows.append({
            "run": name, "variant": variant, "method": variant, "regularized": False, "axes": {"method.rank": 8},
            "seed": 1, "status": "failed" if score is None else "finished", "reason": "It\u2028broke." if score is None else None,
            "scores": {} if score is None else {"accuracy": score, "loss": None}, "provenance": {},
        })  # fmt: skip
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (tmp_path / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    table = {"about": {}, "notes": ["A note of the comparison."], "baseline": "pissa", "scores": ["accuracy"]}
    (tmp_path / "table.json").write_text(json.dumps(table))
    (tmp_path / "figure.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    html = page_of(tmp_path)
    assert "+0.2500" in html and "balora, method.rank 8" in html
    assert "data:image/png;base64," in html
    found = warnings(html)
    assert "A note of the comparison." in found
    assert "dora_seed-1: The run has no result: It\u2028broke." in found
    (tmp_path / "rows.jsonl").write_text("{}\n")
    with pytest.raises(BALoraError, match="is damaged"):
        report(tmp_path)


def test_nested_directories_become_sections_of_one_page(tmp_path):
    write_run(tmp_path / "first" / "a", accuracy=0.1111)
    write_run(tmp_path / "second" / "deeper" / "b", accuracy=0.2222, method="pissa")
    (tmp_path / "figure.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    html = page_of(tmp_path)
    assert html.count("<section") == 2 and 'href="#section-2"' in html
    assert "0.1111" in html and "0.2222" in html
    assert html.count("data:image/svg+xml;base64,") == 1, "the figure over all of them, once"


def test_text_from_files_is_escaped(tmp_path):
    html = page_of(write_run(tmp_path / "run", status="failed", error="<script>alert(1)</script>"))
    assert "&lt;script&gt;alert(1)" in html


def test_a_directory_without_runs_and_a_damaged_file_are_refused(balora, tmp_path):
    write_run(tmp_path / "runs" / "one")
    outcome = balora("report", tmp_path / "run")
    assert outcome.status == 2 and "Did you mean 'runs'?" in outcome.err
    outcome = balora("report", tmp_path / "runs" / "one" / "config.yaml")
    assert outcome.status == 2 and "config.yaml is a file. Give the directory of a run" in outcome.err
    (tmp_path / "empty").mkdir()
    outcome = balora("report", tmp_path / "empty")
    assert outcome.status == 2 and "contains no run and no comparison" in outcome.err
    (tmp_path / "runs" / "one" / "run.json").write_text("{")
    outcome = balora("report", tmp_path / "runs")
    assert outcome.status == 2 and "damaged" in outcome.err


def test_samples_of_the_pre_trained_and_the_tuned_model(balora, config, tmp_path):
    assert balora("train", config, "training.learning_rate=0.05").status == 0
    without = page_of(tmp_path / "run")
    assert 'class="sample"' not in without
    outcome = balora("report", tmp_path / "run", "--samples", 2, "--output", tmp_path / "page.html")
    assert outcome.status == 0, outcome.err
    html = (tmp_path / "page.html").read_text()
    assert html.count('class="sample"') == 2
    assert "what is 0 plus 0?" in html and "it is 0." in html
    answers = re.findall(r'class="label">(pre-trained|balora)</div><p class="text-block">(.*?)</p>', html, re.DOTALL)
    assert [who for who, _ in answers] == ["pre-trained", "balora"] * 2
    assert answers[0][1] != answers[1][1], "training at this rate changes the answer"


def test_a_model_that_cannot_be_loaded_gives_a_warning(tmp_path):
    run = write_run(tmp_path / "run", task="generation")
    assert any("There are no samples of balora" in w for w in warnings(page_of(run, samples=1)))


def test_the_page_fits_narrow_and_wide_windows_in_light_and_dark_mode(tmp_path):
    long = "a-very-long-name-of-a-column-" * 8
    for method in ("lora", "pissa", "balora", "dora", "olora"):
        for seed in (1, 2):
            write_run(tmp_path / f"{method}-{seed}", method=method, seed=seed, text=long, accuracy=0.1 * seed)
    write_run(tmp_path / "broken", status="failed", error="/a/path/" + "without/any/space" * 20)
    page = report(tmp_path, baseline="pissa")
    with open_browser() as browser:
        colours = {}
        for width in (390, 1400):
            for dark in (False, True):
                view = browser.open(page, width, dark=dark)
                assert view.requested == [page.resolve().as_uri()], "the page loads nothing else"
                assert view.problems == []
                assert view.scroll_width <= width, "no horizontal scrolling"
                colours[dark] = (view.background, view.text)
        assert colours[False] != colours[True], "the modes have different colours"
        # The checks above can fail: a bad page fails all of them.
        bad = tmp_path / "bad.html"
        bad.write_text("<div style='width:2000px'>x</div><script>console.error('no')</script><img src='other.png'>")
        view = browser.open(bad, 390)
        assert view.scroll_width > 390 and view.problems and len(view.requested) > 1
