"""Arguments that transformers would refuse only after the model is loaded: schedule, optimizer's options, trackers."""

from collections.abc import Callable

import torch
from accelerate.utils import DynamoBackend
from transformers import TrainingArguments, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks

from balora.errors import shown


def late_problems(arguments: TrainingArguments) -> list[str]:
    """Make what the Trainer would make of the arguments, and list what fails, one sentence each."""
    steps = max(arguments.max_steps, 100)

    def schedule() -> None:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        keywords = dict(arguments.lr_scheduler_kwargs or {})
        warmup = arguments.get_warmup_steps(steps)
        get_scheduler(arguments.lr_scheduler_type, optimizer, warmup, steps, scheduler_specific_kwargs=keywords)

    checks: dict[str, Callable[[], object]] = {
        f"training.lr_scheduler_kwargs and lr_scheduler_type {arguments.lr_scheduler_type.value}": schedule,
        "training.report_to": lambda: get_reporting_integration_callbacks(arguments.report_to),
        "training.log_level": arguments.get_process_log_level,
        "training.torch_compile_backend": lambda: DynamoBackend((arguments.torch_compile_backend or "no").upper()),
    }
    problems = []
    for name, check in checks.items():
        try:
            check()
        except Exception as error:  # any exception, because the values are the user's
            reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
            problems.append(f"{name} cannot be used: {reason}.")
    parts = (arguments.optim_args or "").replace(" ", "").split(",")
    if parts != [""] and not all(part.count("=") == 1 for part in parts):
        given = shown(arguments.optim_args)
        problems.append(f"training.optim_args must be texts such as key=value, separated by commas, not {given}.")
    if arguments.dataloader_multiprocessing_context is not None and arguments.dataloader_num_workers == 0:
        problems.append("training.dataloader_multiprocessing_context needs training.dataloader_num_workers above 0.")
    return problems
