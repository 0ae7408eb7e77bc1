"""Tasks of lm-evaluation-harness, by name, on local data and a loaded model. No request is answered twice."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is absent: pip install 'balora[lm-eval]'")

from balora import BALoraError
from balora.evaluation import EvaluationOptions, evaluate
from balora.evaluation.lm_eval_index import task_names
from balora.evaluation.registry import find_tasks
from balora.evaluation.tasks import lm_eval as lm_eval_tasks
from evaluation_models import classifier_at, generator_at
from tiny import tiny_llama, tiny_tokenizer
from trained_runs import trained_run

CHOICES = [["no", "yes it is"], ["cat", "dog"], ["one", "three"], ["up", "down"], ["in", "outside"]]


@pytest.fixture(autouse=True)
def no_environment_info(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm_eval collects information about the machine for two seconds, which no test needs."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


@pytest.fixture
def arc(tmp_path: Path) -> Path:
    path = tmp_path / "arc" / "test.jsonl"
    path.parent.mkdir()
    rows = [
        {
            "id": str(number),
            "question": f"Number {number}?",
            "choices": {"text": choices, "label": ["A", "B"]},
            "answerKey": "AB"[number % 2],
        }
        for number, choices in enumerate(CHOICES)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def measure(model: Path, task: str, data: Path | None, folder: Path, **options) -> dict:
    places = {} if data is None else {task: str(data)}
    how = EvaluationOptions(data=places, device="cpu", **options)
    return next(iter(evaluate(model, [task], output=folder, options=how).results.values()))


def log_likelihood(model, context: str, continuation: str) -> float:
    tokenizer = tiny_tokenizer()
    before, after = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (context, continuation))
    with torch.no_grad():
        logits = model(torch.tensor([before + after])).logits[0, len(before) - 1 : -1].log_softmax(-1)
    return float(logits.gather(1, torch.tensor(after)[:, None]).sum())


def test_multiple_choice_log_likelihoods_are_those_of_the_model(tmp_path: Path, arc: Path) -> None:
    result = measure(generator_at(tmp_path / "m"), "arc_easy", arc, tmp_path / "out", batch_size=3)
    model, right = tiny_llama(), 0
    for number, choices in enumerate(CHOICES):
        context = f"Question: Number {number}?\nAnswer:"
        ours = [log_likelihood(model, context, f" {choice}") for choice in choices]
        sample = result["samples"][number]
        assert [pair[0] for pair in sample["filtered_resps"]] == pytest.approx(ours, rel=1e-3)
        right += ours.index(max(ours)) == number % 2
    assert result["scores"]["main"] == "acc" and result["scores"]["acc"] == pytest.approx(right / 5)
    assert result["scores"]["rows"] == 5 and result["provenance"]["versions"]["torch"]


def test_a_killed_evaluation_is_resumed_without_repeating_requests(
    tmp_path: Path, arc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lm_eval_tasks, "_BLOCK", 1)
    batch_sizes: list[int] = []
    original = lm_eval_tasks.HFLM.loglikelihood

    def counted(self, requests, disable_tqdm=False):
        if sum(batch_sizes) == 4 and len(batch_sizes) == 2:
            batch_sizes.append(0)
            raise KeyboardInterrupt
        batch_sizes.append(len(requests))
        return original(self, requests, disable_tqdm=True)

    monkeypatch.setattr(lm_eval_tasks.HFLM, "loglikelihood", counted)
    model = generator_at(tmp_path / "m")
    with pytest.raises(KeyboardInterrupt):
        measure(model, "arc_easy", arc, tmp_path / "out", batch_size=2)
    resumed = measure(model, "arc_easy", arc, tmp_path / "out", batch_size=2)
    assert batch_sizes == [2, 2, 0, 2, 2, 2]
    again = measure(model, "arc_easy", arc, tmp_path / "out", batch_size=2)
    assert batch_sizes == [2, 2, 0, 2, 2, 2]
    whole = measure(model, "arc_easy", arc, tmp_path / "whole", batch_size=2)
    assert resumed["scores"] == again["scores"] == whole["scores"]


def test_a_user_defined_generation_task(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"q": f"say {n}", "a": "never"}) + "\n" for n in range(3)))
    task = tmp_path / "mine.yaml"
    task.write_text(
        "task: mine\noutput_type: generate_until\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        "doc_to_text: '{{q}}:'\ndoc_to_target: '{{a}}'\n"
        "generation_kwargs: {until: ['\\n'], max_gen_toks: 6, do_sample: false}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )
    result = measure(generator_at(tmp_path / "m"), str(task), None, tmp_path / "out")
    assert result["scores"]["main"] == "exact_match" and result["scores"]["exact_match"] == 0.0
    ids = tiny_tokenizer()("say 1:", return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        written = tiny_llama().generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    expected = tiny_tokenizer().decode(written, skip_special_tokens=True)
    assert result["samples"][1]["resps"][0][0].split() == expected.split()


def test_examples_in_the_prompt_come_from_the_training_file(tmp_path: Path, arc: Path) -> None:
    (arc.parent / "train.jsonl").write_text(arc.read_text().replace("Number", "Example"))
    result = measure(generator_at(tmp_path / "m"), "arc_easy", arc.parent, tmp_path / "out", few_shot=2, limit=2)
    assert result["scores"]["rows"] == 2
    prompt = result["samples"][0]["arguments"][0][0]
    assert prompt.count("Question: Example") == 2 and prompt.endswith("Question: Number 0?\nAnswer:")


def test_a_run_is_evaluated_with_its_adapter(tmp_path: Path, arc: Path) -> None:
    run = trained_run(tmp_path / "run", tiny_llama(), "generation")
    tuned = measure(run.folder, "arc_easy", arc, tmp_path / "tuned")
    plain = measure(run.base, "arc_easy", arc, tmp_path / "plain")
    assert tuned["samples"][0]["filtered_resps"] != plain["samples"][0]["filtered_resps"]
    ours = log_likelihood(run.model, "Question: Number 0?\nAnswer:", " no")
    assert tuned["samples"][0]["filtered_resps"][0][0] == pytest.approx(ours, rel=1e-3)


def test_a_tag_of_tasks_has_no_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answered(*_: object) -> dict:
        return {"results": {"cola": {"mcc,none": 0.1}, "mnli": {"acc,none": 0.9}}, "samples": {}}

    monkeypatch.setattr("balora.evaluation.tasks.lm_eval.LMEvalTask._run", answered)
    scores = measure(generator_at(tmp_path / "model"), "lm_eval:glue", None, tmp_path / "out")["scores"]
    assert scores["score"] is None and "mcc" not in scores
    assert scores["by_task"] == {"cola": {"main": "mcc", "mcc": 0.1}, "mnli": {"main": "acc", "acc": 0.9}}


def test_own_tasks_have_precedence_over_lm_eval() -> None:
    own, library, library_only = find_tasks(["gsm8k", "lm_eval:gsm8k", "hellaswag"])
    assert [own.name, library.name, library_only.name] == ["gsm8k", "lm_eval:gsm8k", "hellaswag"]
    assert "harness" in library.summary and "harness" not in own.summary
    with pytest.raises(BALoraError, match=r"There is no task 'sst3'.*'sst2'"):
        find_tasks(["sst3"])
    with pytest.raises(BALoraError, match=r"There is no task 'hellaswagg'.*'hellaswag'"):
        find_tasks(["hellaswagg"])


@pytest.mark.parametrize(
    ("task", "message"),
    [("arc_easy", "--data TASK=PATH"), ("mmlu", "group of tasks")],
)
def test_unreadable_data_are_reported(tmp_path: Path, arc: Path, task: str, message: str) -> None:
    data = arc if task == "mmlu" else None
    with pytest.raises(BALoraError, match=message):
        measure(generator_at(tmp_path / "m"), task, data, tmp_path / "out")


def test_other_models_than_language_models_are_refused(tmp_path: Path, arc: Path) -> None:
    with pytest.raises(BALoraError, match="is a classifier"):
        measure(classifier_at(tmp_path / "c", ["a", "b"]), "arc_easy", arc, tmp_path / "out")
    with pytest.raises(BALoraError, match="no reference answers"):
        measure(Path("reference"), "arc_easy", arc, tmp_path / "out2")
    with pytest.raises(BALoraError, match="no file or directory"):
        measure(generator_at(tmp_path / "m"), "arc_easy", tmp_path / "absent.jsonl", tmp_path / "out3")


TASK = """task: mine
output_type: generate_until
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: '{{{{q}}}}:'
doc_to_target: '{{{{a}}}}'
generation_kwargs: {generation}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture
def task_file(tmp_path: Path):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"q": f"say {'so ' * n}{n}", "a": "never"}) + "\n" for n in range(5)))

    def write(
        name: str = "mine.yaml", generation: str = "{until: [';;'], max_gen_toks: 6, do_sample: false}", more: str = ""
    ) -> Path:
        path = tmp_path / name
        path.write_text(TASK.format(data=data, generation=generation) + more)
        return path

    return write


def test_a_sampled_task_depends_on_its_seed_and_not_on_the_batch(tmp_path: Path, task_file) -> None:
    task = str(task_file(generation="{until: [';;'], max_gen_toks: 6, do_sample: true, temperature: 1.0}"))
    model = generator_at(tmp_path / "m")

    def answers(folder: str, **how) -> list[str]:
        result = measure(model, task, None, tmp_path / folder, **how)
        return [sample["resps"][0][0] for sample in result["samples"]]

    first = answers("a", batch_size=1, seed=3)
    assert answers("b", batch_size=4, seed=3) == first
    assert answers("c", batch_size=4, seed=3, limit=2) == first[:2]
    assert answers("c", batch_size=4, seed=3) == first
    assert answers("a", batch_size=4, seed=4) != first, "the journal of another seed has none of these answers"


def test_examples_are_drawn_with_the_seed_of_the_evaluation(tmp_path: Path, arc: Path) -> None:
    rows = [json.loads(line) for line in arc.read_text().splitlines()]
    train = [{**row, "question": f"Example {n}?"} for n in range(8) for row in rows[:1]]
    (arc.parent / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in train))
    model = generator_at(tmp_path / "m")

    def prompt(seed: int) -> str:
        result = measure(model, "arc_easy", arc.parent, tmp_path / "out", few_shot=2, limit=1, seed=seed)
        return result["samples"][0]["arguments"][0][0]

    prompts = [prompt(seed) for seed in (1, 2, 3, 1)]
    assert prompts[0] == prompts[3] and len(set(prompts)) > 1


def test_empty_and_cut_texts_are_counted(tmp_path: Path, task_file) -> None:
    scores = measure(generator_at(tmp_path / "m"), str(task_file()), None, tmp_path / "out")["scores"]
    assert scores["empty_answers"] == 0 and scores["answers_at_token_limit"] == 5


def test_a_task_file_runs_code_only_if_that_is_allowed(tmp_path: Path, task_file, balora) -> None:
    mark = tmp_path / "ran"
    (tmp_path / "code.py").write_text(f"open({str(mark)!r}, 'w').close()\ndef text(doc): return doc['q']\n")
    direct = task_file("direct.yaml", more="process_results: !function code.text\n")
    included = tmp_path / "included.yaml"
    included.write_text("include: direct.yaml\ntask: second\n")
    grouped = tmp_path / "grouped.yaml"
    grouped.write_text("group: g\ntask:\n  - include: direct.yaml\n    task: third\n")
    tagged = task_file("tagged.yaml", more="x: !!python/object/apply:os.system ['true']\n")
    by_class = task_file("class.yaml", more="class: !function code.Task\n")
    metric = task_file("metric.yaml", more="filter_list: []\n")
    metric.write_text(metric.read_text().replace("metric: exact_match,", "metric: exact_match, hf_evaluate: true,"))
    model = generator_at(tmp_path / "m")
    for path in (direct, included, grouped, tagged, by_class, metric):
        outcome = balora("evaluate", model, "--tasks", f"lm_eval:{path}", "--output", tmp_path / "o", "--device", "cpu")
        assert outcome.status == 2, path
        assert "names Python code" in outcome.err and "give the option --task-code" in outcome.err, outcome.err
        with pytest.raises(BALoraError, match="give the option task_code"):
            measure(model, f"lm_eval:{path}", None, tmp_path / "o")
    assert not mark.exists()
    allowed = task_file("allowed.yaml", more="process_docs: !function code.docs\n")
    (tmp_path / "code.py").write_text(f"open({str(mark)!r}, 'w').close()\ndef docs(rows): return rows\n")
    measure(model, f"lm_eval:{allowed}", None, tmp_path / "o", task_code=True)
    assert mark.exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("'{{q}}:'", '"{{ q.__class__.__mro__[1].__subclasses__() }}"', "unsafe"),
        ("metric: exact_match", "metric: no_such_metric", "--task-code"),
    ],
)
def test_templates_and_metrics_run_no_code(tmp_path: Path, task_file, balora, old: str, new: str, message: str) -> None:
    path = task_file()
    path.write_text(path.read_text().replace(old, new))
    model = generator_at(tmp_path / "m")
    outcome = balora("evaluate", model, "--tasks", f"lm_eval:{path}", "--output", tmp_path / "o", "--device", "cpu")
    assert outcome.status == 2, outcome.out
    assert message in outcome.err


@pytest.mark.slow
def test_the_names_of_the_tasks_are_those_of_the_library() -> None:
    from lm_eval.tasks import TaskManager

    assert set(TaskManager().all_tasks) <= task_names()


@pytest.mark.parametrize("name", ["hellaswagg", "lm_eval:gsm8kk", "absent.yaml"])
def test_a_misspelt_task_is_answered_at_once(tmp_path: Path, name: str) -> None:
    started = time.process_time()
    with pytest.raises(BALoraError, match="There is no task"):
        find_tasks([name])
    assert time.process_time() - started < 3
