"""RunConfig: accepted values, the resolved config, and the message for every mistake."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import yaml
from pydantic import ValidationError
from transformers import EvalPrediction

from balora.config.data_columns import data_problems
from balora.config.run_config import HARMLESS, DataConfig, MethodConfig, RunConfig, differences, load_run_config
from balora.config.training_arguments import training_fields
from balora.config.yaml_loader import apply_overrides, parse_yaml, read_config
from balora.errors import BALoraError
from balora.methods import METHODS
from balora.regularization import RegularizationConfig
from balora.training.metrics import SCORES, metrics_for
from balora.training.run import training_arguments

# The example of the design document, unchanged.
DESIGN = """\
model: meta-llama/Llama-2-7b-hf        # hub id or folder
task: generation                       # generation | seq2seq | classification | regression
data: {train: meta-math/MetaMathQA, split: "train[:100000]", eval: 0.01, prompt: query, response: response, max_length: 512}
method: {name: balora, rank: 128, alpha: 128, target_modules: all-linear}
regularization: {consistency: 0.025, diversity: 0.005, spectral: 0.005}
training: {learning_rate: 2.0e-5, num_train_epochs: 1, per_device_train_batch_size: 4, gradient_accumulation_steps: 8, bf16: true}
output: runs/llama2-metamath
"""
SMALL = {"model": "m", "task": "generation", "data": {"train": "d.jsonl", "text": "story"}, "output": "runs/a"}


def make(**changes) -> RunConfig:
    return RunConfig.from_dict({**copy.deepcopy(SMALL), **changes})


def error_of(**changes) -> str:
    with pytest.raises(BALoraError) as error:
        make(**changes)
    return str(error.value)


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# --- reading ----------------------------------------------------------------------------------------------------------


def test_the_design_example_is_read(tmp_path):
    config = load_run_config(write(tmp_path, DESIGN))
    assert config.data.eval == 0.01
    assert config.data.split == "train[:100000]"
    assert config.data.form == "pair"
    assert config.method == MethodConfig(name="balora", rank=128, alpha=128, target_modules="all-linear")
    assert config.regularization == RegularizationConfig.for_generation()
    assert config.training["learning_rate"] == 2e-5
    assert config.training["bf16"] is True
    assert (config.seed, config.loss_path, config.dtype, config.resume) == (42, "fused", "float32", "auto")
    assert not config.allow_pickle
    assert not config.trust_remote_code


def test_the_resolved_config_loads_as_an_equal_object(tmp_path):
    for config in (
        load_run_config(write(tmp_path, DESIGN)),
        make(method={"name": "lora", "target_modules": ["q_proj", "v_proj"]}, training={"eval_strategy": "no"}),
        make(
            task="classification",
            data={"train": "d.tsv", "text": ["a", "b"], "label": "l", "labels": ["no", "1", "ja ∈ é"], "eval": "dev"},
            method={"name": "pissa", "svd": "randomized", "svd_iterations": 4},
        ),
    ):
        text = config.dump_yaml()
        path = tmp_path / "resolved.yaml"
        path.write_text(text, encoding="utf-8")
        assert load_run_config(path) == config
        assert RunConfig.from_dict(yaml.safe_load(text)) == config, "a YAML 1.1 reader must see the same"


def test_the_resolved_config_has_every_key():
    written = yaml.safe_load(make().dump_yaml())
    assert written["data"]["max_length"] == 512
    assert written["method"] == {
        "name": "balora", "rank": 8, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear", "exclude_modules": None,
        "options": {},
    }  # fmt: skip
    assert written["regularization"] == RegularizationConfig.for_generation().to_dict()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-5", 2e-5),
        ("2E5", 2e5),
        ("-1e+3", -1000.0),
        ("2.0e-5", 2e-5),
        (".5", 0.5),
        ("1.", 1.0),
        ("7", 7),
        ("-0", 0),
        ("0x1F", 31),
        ("no", "no"),
        ("off", "off"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("2024-01-01", "2024-01-01"),
        ("007", "007"),
        ("1:30", "1:30"),
        ("'2e-5'", "2e-5"),
        ("e5", "e5"),
        (".inf", float("inf")),
    ],
)
def test_scalars_are_read_as_yaml_1_2(text, value):
    read = parse_yaml(text)
    assert read == value
    assert type(read) is type(value)


def test_merge_keys_still_work():
    assert parse_yaml("a: &x {b: 1}\nc: {<<: *x, d: 2}")["c"] == {"b": 1, "d": 2}


def test_overrides_set_dotted_keys():
    values = {"training": {"learning_rate": 1}, "method": None, "regularization": "off"}
    changed = apply_overrides(
        values,
        [
            "training.learning_rate=2e-5",
            "method.rank=4",
            "regularization.consistency=0.1",
            "seed=7",
            "data.text=[a, b]",
            "x=",
        ],
    )
    assert changed == {
        "training": {"learning_rate": 2e-5}, "method": {"rank": 4}, "regularization": {"consistency": 0.1}, "seed": 7,
        "data": {"text": ["a", "b"]}, "x": None,
    }  # fmt: skip
    assert values == {"training": {"learning_rate": 1}, "method": None, "regularization": "off"}, (
        "the caller's values are unchanged"
    )


def test_overrides_change_the_config(tmp_path):
    path = write(tmp_path, DESIGN)
    config = load_run_config(path, ["training.learning_rate=3e-4", "method.name=pissa", "data.eval="])
    assert config.training["learning_rate"] == 3e-4
    assert config.method.name == "pissa"
    assert config.data.eval is None


def test_wrong_overrides_are_all_named():
    with pytest.raises(BALoraError) as error:
        apply_overrides({"model": "m"}, ["rank", "model.size=3", "a=[1", ".b=2"])
    message = str(error.value)
    assert "4 problems" in message
    assert "'rank' is not of the form dotted.key=value" in message
    assert "model.size cannot be set: model is 'm', not a section" in message
    assert "'a=[1' is not valid YAML" in message


def test_a_missing_file_suggests_the_nearest_name(tmp_path):
    write(tmp_path, DESIGN)
    with pytest.raises(BALoraError, match=r"There is no config file .*confg\.yaml\. Did you mean 'config\.yaml'\?"):
        load_run_config(tmp_path / "confg.yaml")
    with pytest.raises(
        BALoraError,
        match=r"is a folder; give the path of a YAML config file\. If it is a run directory, its config is .*config\.yaml\.",
    ):
        load_run_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: a\ntask: [b", r"not valid YAML: .*\(line 2, column 9\)"),
        ("model: a\n\tb: c", r"line 2, column 1"),
        ("model: a\ntask: b\nmodel: c", r"the key 'model' is given twice \(line 3, column 1\)"),
        ("data: {text: a, text: b}", r"the key 'text' is given twice \(line 1, column 17\)"),
        ("- model: a", "not a list"),
        ("just text", "not a single value"),
        ("# nothing", "is empty"),
        (
            "model: !!python/object/apply:os.system [ls]",
            r"the tag !!python/object/apply:os.system is not supported; write the value without a tag \(line 1, column 8\)",
        ),
    ],
)
def test_invalid_yaml_is_reported_with_its_line(tmp_path, text, message):
    with pytest.raises(BALoraError, match=message):
        read_config(write(tmp_path, text))


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BALoraError, match="cannot be read"):
        read_config(tmp_path / "c.yaml")


# --- problems, all at once ---------------------------------------------------------------------------------------


def test_every_problem_is_reported_in_one_error():
    with pytest.raises(BALoraError) as error:
        RunConfig.from_dict(
            {
                "model": 5,
                "task": "generation",
                "data": {"train": "x", "promt": "q", "prompt": "p", "label": "l", "max_length": "long", "eval": 3},
                "method": {"name": "pisa", "rank": 0, "dropout": 1.0},
                "regularization": {"consistency": -2, "diversit": 0.005, "top_k": 1, "temperature": 0},
                "training": {
                    "learning_rate": "fast", "per_device_batch_size": 3, "bf16": 3, "eval_strategy": "stepz",
                    "output_dir": "x", "warmup_ratio": 0.1, "num_train_epochs": 0, "max_steps": 1.5,
                },
                "outptu": "runs/x",
                "seed": -1,
                "dtype": "float31",
            },
            source="my.yaml",
        )  # fmt: skip
    lines = str(error.value).splitlines()
    assert lines[0] == f"my.yaml cannot be used: {len(lines) - 1} problems."
    assert set(lines[1:]) == {
        "  - model must be text, not 5; put quotes around a number or date that is meant as text.",
        "  - Unknown key data.promt. Did you mean 'prompt'?",
        "  - data.max_length must be a whole number, not 'long'.",
        "  - data.eval must be a fraction between 0 and 1, a split or a file, not 3.",
        "  - data.response is missing: task generation needs prompt and response.",
        "  - data.label is not used for task generation with prompt and response; leave it out.",
        f"  - method.name must be one of {', '.join(METHODS)}, not 'pisa'. Did you mean 'pissa'?",
        "  - method.rank must be at least 1, not 0.",
        "  - method.dropout must be below 1.0, not 1.0.",
        "  - Unknown key regularization.diversit. Did you mean 'diversity'?",
        "  - regularization.consistency must be a number of at least 0, not -2.",
        "  - regularization.top_k must be a whole number of at least 2, not 1.",
        "  - regularization.temperature must be above 0, not 0.",
        "  - training.learning_rate must be a number, not 'fast'.",
        "  - Unknown key training.per_device_batch_size. Did you mean 'per_device_eval_batch_size'?",
        "  - training.bf16 must be true or false, not 3.",
        "  - training.eval_strategy must be one of no, steps, epoch, not 'stepz'. Did you mean 'steps'?",
        "  - training.output_dir is set by the top-level key output; leave it out.",
        "  - Unknown key training.warmup_ratio. Use training.warmup_steps: a value below 1 is a fraction of all steps.",
        "  - training.num_train_epochs must be above 0, not 0.",
        "  - training.max_steps must be a whole number, not 1.5.",
        "  - output is missing (the run directory).",
        "  - Unknown key outptu. Did you mean 'output'?",
        "  - seed must be at least 0, not -1.",
        "  - dtype must be one of float32, bfloat16, float16, auto, not 'float31'. Did you mean 'float32'?",
    }


def test_a_single_problem_is_one_sentence():
    assert error_of(method={"name": "lora", "rank": 0}) == "method.rank must be at least 1, not 0."


def test_everything_missing_is_named():
    with pytest.raises(BALoraError) as error:
        RunConfig.from_dict({})
    for key in ("model", "task", "data", "output"):
        assert f"{key} is missing" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "lora"}, "method must be a section with keys, not 'lora'"),
        ({"data": ["a"]}, "data must be a section"),
        ({"training": 3}, "training must be a section"),
        ({"regularization": 0.1}, "regularization must be a section with keys, or on or off, not 0.1"),
        ({"regularization": {"teacher_head": "prob"}}, "regularization.teacher_head must be one of initial, probe"),
        ({"method": {"rank": True}}, "method.rank must be a number, not true"),
        ({"method": {"rank": 2.5}}, "method.rank must be a whole number, not 2.5"),
        ({"method": {"alpha": 0}}, "method.alpha must be above 0"),
        ({"method": {"alpha": float("nan")}}, "method.alpha"),
        ({"method": {"target_modules": []}}, "method.target_modules cannot be"),
        ({"method": {"name": "lora", "svd_iterations": 4}}, "Method 'lora' has no option 'svd_iterations'"),
        (
            {"method": {"name": "pissa", "options": {"svdd": 4}}},
            "Method 'pissa' has no option 'svdd'. Did you mean 'svd'?",
        ),
        ({"method": {"name": "lora", "svd": "exact"}}, "no option 'svd'. Methods that have it: pissa, balora"),
        ({"allow_pickle": "perhaps"}, "allow_pickle must be true or false"),
        ({"output": ""}, "output cannot be ''"),
        ({"seed": 2**32}, "seed must be below"),
        ({"resume": "sometimes"}, "resume must be one of auto, never"),
        ({"tokenizer": 7}, "tokenizer must be text"),
        ({"revision": 123}, "revision must be text, not 123; put quotes around a number or date that is meant as text"),
    ],
)
def test_wrong_values(changes, message):
    assert message in error_of(**changes)


def test_a_key_outside_its_section_is_suggested_with_its_section():
    assert error_of(learning_rate=1e-4) == "Unknown key learning_rate. Did you mean training.learning_rate?"
    assert error_of(rank=4) == "Unknown key rank. Did you mean method.rank?"
    assert error_of(name="main") == "Unknown key name. Did you mean data.name or method.name?"
    assert error_of(temperature=1.0) == "Unknown key temperature. Did you mean regularization.temperature?"
    assert error_of(modle="m") == "Unknown key modle. Did you mean 'model'?"


def test_fsdp_takes_true_as_transformers_documents(monkeypatch):
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # which transformers sets
    fsdp = {"fsdp": True, "fsdp_config": {"version": 2}}
    config = make(training={**fsdp, "use_cpu": True})
    assert {key: config.training[key] for key in fsdp} == fsdp
    arguments = training_arguments(config)  # transformers fills its dictionary in, and a resume compares ours
    assert arguments.fsdp and arguments.fsdp_config["version"] == 2
    assert config.training["fsdp_config"] == {"version": 2}


def test_missing_rows_and_packages_are_reported_before_a_model_is_loaded(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *given: None if name == "wandb" else find(name, *given)
    )
    wrong = make(training={"eval_strategy": "epoch", "report_to": ["tensorboard", "wandb"], "use_cpu": True})
    with pytest.raises(BALoraError) as error:
        training_arguments(wrong)
    assert "training.eval_strategy is epoch, and there are no rows to evaluate on. Name them in data.eval" in str(
        error.value
    )
    assert "training.report_to: wandb needs a package that is not installed: pip install 'balora[wandb]'" in str(
        error.value
    )


@pytest.mark.parametrize(
    ("task", "name", "message"),
    [
        ("generation", "accuracy", "Choose from loss."),
        ("classification", "acuracy", "Did you mean 'accuracy'? Choose from loss, accuracy, f1_macro, matthews."),
        ("regression", "eval_spearman", None),
        ("classification", "eval_loss", None),
    ],
)
def test_an_unknown_score_cannot_choose_the_best_model(task, name, message):
    values = {"training": {"metric_for_best_model": name, "use_cpu": True}, "task": task}
    if task != "generation":
        column = "score" if task == "regression" else "label"
        values["data"] = {"train": "d.jsonl", "text": "t", column: "l"}
    config = make(**values)
    if message is None:
        assert training_arguments(config).metric_for_best_model == name
        return
    with pytest.raises(BALoraError) as error:
        training_arguments(config)
    assert f"training.metric_for_best_model is {name}, which no evaluation of this task computes." in str(error.value)
    assert message in str(error.value)


def test_score_names_equal_those_of_the_evaluations():
    found = EvalPrediction(np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([0, 1]))
    assert tuple(metrics_for("classification")(found)) == SCORES["classification"]
    found = EvalPrediction(np.array([0.0, 1.0]), np.array([0.5, 1.0]))
    assert tuple(metrics_for("regression")(found)) == SCORES["regression"]


def test_the_constructor_makes_the_same_checks():
    with pytest.raises(ValidationError, match=r"method\.rank must be at least 1"):
        RunConfig(**{**SMALL, "method": {"rank": 0}})
    made = RunConfig(**{**SMALL, "data": DataConfig(train="d.jsonl", text="story"), "method": MethodConfig(rank=4)})
    assert made == make(method={"rank": 4})


def test_a_config_is_immutable():
    with pytest.raises(ValidationError, match="frozen"):
        make().seed = 3


def test_an_empty_section_is_its_default():
    assert make(method=None, training=None, regularization=None, seed=None) == make()


# --- method and regularization ----------------------------------------------------------------------------------------


def test_alpha_is_the_rank_unless_given():
    assert make(method={"rank": 16}).method.alpha == 16
    assert make(method={"rank": "16"}).method.alpha == 16
    assert make(method={"rank": 16, "alpha": 4}).method.alpha == 4
    assert "alpha" not in error_of(method={"rank": "x"})


def test_a_methods_own_options_can_be_written_beside_its_keys():
    beside = make(method={"name": "pissa", "svd": "randomized", "svd_iterations": 4}).method
    assert make(method={"name": "pissa", "svd": "randomized", "svd_iterations": 4, "bits": None}).method == beside
    assert beside.options == {"svd": "randomized", "svd_iterations": 4}
    assert make(method={"name": "pissa", "svd_iterations": 4, "options": {"svd": "randomized"}}).method == beside
    assert make().method.options == {}


@pytest.mark.parametrize(("method", "on"), [("balora", True), ("pissa", False), ("lora", False), ("full", False)])
def test_regularization_is_on_by_default_for_balora_alone(method, on):
    assert make(method={"name": method}).regularization.active is on
    assert make(method={"name": method}, regularization={"diversity": 0.1}).regularization.active
    for word in ("off", False, "no"):
        assert make(method={"name": method}, regularization=word).regularization == RegularizationConfig.off()
    for word in ("on", True):
        assert (
            make(method={"name": method}, regularization=word).regularization == RegularizationConfig.for_generation()
        )


def test_given_keys_change_the_papers_values_of_the_task():
    assert make(regularization={"diversity": 0.1}).regularization == RegularizationConfig.for_generation(diversity=0.1)
    classify = {"task": "classification", "data": {"train": "d.tsv", "text": "s", "label": "l"}}
    assert make(**classify).regularization == RegularizationConfig.for_classification()
    probe = make(**classify, regularization={"teacher_head": "probe"}).regularization
    assert probe == RegularizationConfig.for_classification(teacher_head="probe")
    score = {"task": "regression", "data": {"train": "d.tsv", "text": "s", "score": "l"}}
    assert make(**score).regularization == RegularizationConfig.for_classification()


# --- training ---------------------------------------------------------------------------------------------------------


def test_training_values_take_the_type_transformers_declares():
    training = make(
        training={
            "learning_rate": "2e-5", "bf16": "yes", "max_steps": "300", "logging_steps": 10, "eval_strategy": False,
            "optim": "adamw_torch", "lr_scheduler_kwargs": {"min_lr": 1e-6}, "report_to": ["tensorboard"],
            "run_name": None, "warmup_steps": 0.03, "save_strategy": "best",
        }
    ).training  # fmt: skip
    assert training == {
        "learning_rate": 2e-5, "bf16": True, "max_steps": 300, "logging_steps": 10, "eval_strategy": "no",
        "optim": "adamw_torch", "lr_scheduler_kwargs": {"min_lr": 1e-6}, "report_to": ["tensorboard"],
        "warmup_steps": 0.03, "save_strategy": "best",
    }  # fmt: skip
    assert type(training["logging_steps"]) is int


def test_transformers_accepts_checked_training_values(tmp_path):
    from transformers import TrainingArguments

    training = make(training={"learning_rate": "3e-4", "eval_strategy": "no", "save_strategy": "epoch"}).training
    assert TrainingArguments(output_dir=str(tmp_path), **training).learning_rate == 3e-4


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("learning_rate", 0, "must be above 0"),
        ("learning_rate", True, "must be a number, not True"),
        ("weight_decay", -0.1, "must be at least 0"),
        ("per_device_train_batch_size", 0, "must be above 0"),
        ("seed", 3, "is set by the top-level key seed"),
        ("resume_from_checkpoint", "x", "is set by the top-level key resume"),
        ("evaluation_strategy", "steps", "It is training.eval_strategy"),
        ("no_cuda", True, "Use training.use_cpu"),
        ("hub_token", "hf_secret", "does not belong in a file"),
        ("push_to_hub", True, "`balora export RUN --to lora --output FOLDER`"),
        ("label_smoothing_factor", 0.1, "is not supported by the regularized objective"),
        ("lr_scheduler_type", "cosin", "Did you mean 'cosine'?"),
        ("report_to", 3, "must be text or list"),
        ("learnin_rate", 3, "Unknown key training.learnin_rate. Did you mean 'learning_rate'?"),
    ],
)
def test_wrong_training_arguments(name, value, message):
    error = error_of(training={name: value})
    assert error.startswith(("training.", "Unknown key training."))
    assert message in error


def test_bf16_and_fp16_together_are_refused():
    assert "cannot both be true" in error_of(training={"bf16": True, "fp16": True})


# --- data forms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "columns", "form"),
    [
        ("generation", {"prompt": "p", "response": "r"}, "pair"),
        ("generation", {"prompt": "p", "response": "r", "input": "i", "prompt_template": "alpaca"}, "pair"),
        ("generation", {"messages": "m"}, "messages"),
        ("generation", {"text": "t"}, "text"),
        ("seq2seq", {"prompt": "p", "response": "r", "target_tokenizer": "t", "max_target_length": 9}, "pair"),
        ("classification", {"text": "t", "label": "l"}, "labelled"),
        ("classification", {"text": ["t", "u"], "label": "l", "labels": ["a", "b"]}, "labelled"),
        ("regression", {"text": ["t", "u"], "score": "s"}, "scored"),
    ],
)
def test_forms(task, columns, form):
    assert make(task=task, data={"train": "d.jsonl", **columns}).data.form == form


@pytest.mark.parametrize(
    ("task", "columns", "message"),
    [
        ("generation", {}, "for task generation give prompt and response, or messages, or text"),
        ("seq2seq", {"text": "t"}, "for task seq2seq give prompt and response"),
        ("classification", {"label": "l"}, "data.text is missing"),
        ("regression", {"text": "t"}, "data.score is missing: task regression needs text and score"),
        ("generation", {"text": "t", "messages": "m"}, "data.messages and data.text make different kinds of examples"),
        ("generation", {"messages": "m", "prompt_template": "alpaca"}, "data.prompt_template is not used"),
        (
            "seq2seq",
            {"prompt": "p", "response": "r", "separator": "x"},
            "data.separator is not used for task seq2seq",
        ),
        ("generation", {"prompt": "p", "response": "r", "input": "i"}, "data.input needs a prompt_template"),
        (
            "generation",
            {"prompt": "p", "response": "r", "prompt_template": "alpacca"},
            "that contains {prompt}, not 'alpacca'",
        ),
        ("generation", {"text": ["a", "b"]}, "data.text must be one column for task generation"),
        ("classification", {"text": ["a", "b", "c"], "label": "l"}, "one or two columns, not 3"),
        ("classification", {"text": "t", "label": "l", "labels": ["a"]}, "data.labels must name at least two classes"),
        ("classification", {"text": "t", "label": "l", "labels": ["a", "a"]}, "each once"),
        ("classification", {"text": "t", "label": "l", "eval": 1.0}, "data.eval must be a fraction between 0 and 1"),
        ("classification", {"text": "t", "label": "l", "eval": True}, "data.eval must be a fraction between 0 and 1"),
        ("classification", {"text": "t", "label": "l", "max_length": 1}, "data.max_length must be at least 2"),
    ],
)
def test_wrong_forms(task, columns, message):
    assert message in error_of(task=task, data={"train": "d.jsonl", **columns})


def test_forms_are_checked_before_defaults_are_filled_in():
    assert data_problems({"prompt": "p", "response": "r"}, "generation") == []
    assert len(data_problems({"prompt": "p", "label": "x", "input": "i"}, "generation")) == 3


def test_label_names_can_look_like_numbers_and_booleans():
    data = parse_yaml("{train: d.tsv, text: t, label: l, labels: [no, 1, true]}")
    assert make(task="classification", data=data).data.labels == ("no", "1", "True")


def test_eval_can_be_a_fraction_in_quotes_a_split_or_nothing():
    for given, expected in (
        (0.1, 0.1),
        ("0.1", 0.1),
        ("dev", "dev"),
        ("dev.tsv", "dev.tsv"),
        (False, None),
        (None, None),
    ):
        assert make(data={"train": "d.jsonl", "text": "t", "eval": given}).data.eval == expected


# --- differences ------------------------------------------------------------------------------------------------------


def test_differences_name_dotted_keys():
    one = make(training={"learning_rate": 1e-4, "logging_steps": 1}, method={"name": "balora", "rank": 8})
    two = make(
        training={"learning_rate": 2e-4, "logging_steps": 5, "max_steps": 3}, method={"name": "balora", "rank": 4}
    )
    assert differences(one, two) == [
        "method.rank", "method.alpha", "training.learning_rate", "training.max_steps",
    ]  # fmt: skip
    assert differences(one, one) == []


@pytest.mark.parametrize("key", HARMLESS)
def test_harmless_keys_exist_and_are_no_difference(key):
    values = {
        "report_to": ["tensorboard"],
        "logging_strategy": "epoch",
        "save_strategy": "epoch",
        "hub_strategy": "end",
    }
    section, _, name = key.rpartition(".")
    if section:
        assert section == "training"
        kind = str(training_fields()[name])
        value = values.get(name, True if "bool" in kind else 3 if "int" in kind or "float" in kind else "info")
        changed = make(training={name: value})
    else:
        changed = make(**{key: {"output": "runs/b", "resume": "never"}.get(key, True)})
    assert changed != make()
    assert differences(make(), changed) == []


def test_regularization_switched_off_is_a_difference():
    assert "regularization.consistency" in differences(make(), make(regularization="off"))
