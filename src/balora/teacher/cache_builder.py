"""`balora teacher`: run the pre-trained model once over every row of a run and store its outputs in a teacher cache.

Shapes: B sequences, T positions, M valid tokens, V vocabulary, K cached tokens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from balora.checkpoints.lock import LOCK, locked, require_writable
from balora.errors import BALoraError, raise_all
from balora.files import apply_umask, temporary_path, write_text
from balora.losses import TopKTeacher
from balora.models.hidden_states import HiddenStateExtractor, valid_targets
from balora.teacher.cache import FORMAT, INDEX, SHARDS, TeacherCache, TeacherIdentity, read_index
from balora.teacher.row_keys import row_key
from balora.turns import by_turns, division, from_first

if TYPE_CHECKING:
    from balora.config.run_config import RunConfig

TOP_K = 64
"""Default number of cached tokens per position."""
SHARD_ROWS = 256
_HALF_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclasses.dataclass(frozen=True)
class BuildReport:
    """Result of `TeacherCacheBuilder.add`."""

    directory: Path
    rows: int
    new_rows: int
    size: int
    """Bytes on disk."""
    tail: float
    """Mean probability, at the run's temperature, of all tokens that are not cached; over the new rows."""
    temperature: float

    def lines(self) -> list[str]:
        """Format the report as lines for the screen."""
        lines = [f"{self.directory}: {self.rows:,} rows, {self.new_rows:,} new, {self.size / 2**20:,.1f} MiB"]
        if self.new_rows:
            lines.append(
                f"mean tail {self.tail:.3g}: per token, the gradient of the consistency term has an error of at most "
                f"{2 * self.temperature * self.tail:.3g} (sum over the logits, before the weight)"
            )
        return lines


def build_teacher_cache(
    config: RunConfig, top_k: int = TOP_K, log: Callable[[str], None] = lambda line: None
) -> BuildReport:
    """Build or complete the cache that ``teacher_cache`` names, for the run's training and evaluation rows.

    Evaluation rows are included because a run with another seed may train on them.

    Raises:
        BALoraError: The config names no directory or one with other content, or the task uses no cache on disk.
    """
    # Imported here: the builder itself needs the core alone, as the benchmarks of a GPU do.
    from balora.data.collate import make_collator
    from balora.data.examples import load_examples
    from balora.data.packing import pack_training_rows
    from balora.data.tokenize import tokenize_examples
    from balora.data.tokenizer_digest import tokenizer_digest
    from balora.loading.pretrained import load_model, load_target_tokenizer, load_tokenizer, max_positions
    from balora.loading.source import ModelSource

    problems = []
    if config.teacher_cache in ("auto", "off"):
        fix = "set it in the config or on the command line, as teacher_cache=DIR"
        problems.append(f"teacher_cache names no directory; {fix}.")
    if config.task in ("classification", "regression"):
        problems.append(f"Task {config.task} keeps its teacher's outputs in memory and needs no cache on disk.")
    if top_k < 1:
        problems.append(f"At least one token per position must be cached, not {top_k}.")
    raise_all(problems, "The teacher cache cannot be built")
    source = ModelSource.from_config(config)
    tokenizer, target = load_tokenizer(source), load_target_tokenizer(source)
    examples = load_examples(config.data, config.task, config.seed)
    model = load_model(source, tokenizer=tokenizer)
    positions = max_positions(model.config)
    tokenized = tokenize_examples(
        examples, tokenizer, config.data, config.task, target_tokenizer=target, max_positions=positions
    )
    tokenized = pack_training_rows(tokenized, config.data)
    identity = TeacherIdentity.of_run(config, model, tokenizer_digest(tokenizer, target))
    cpu = not torch.cuda.is_available() or config.training.get("use_cpu")
    builder = TeacherCacheBuilder(
        Path(config.teacher_cache),
        model.to("cpu" if cpu else f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if division()[1] > 1 else "cuda"),
        identity,
        make_collator(config.task, tokenizer, model),
        shift=config.task == "generation",
        top_k=top_k,
        batch_size=int(config.training.get("per_device_train_batch_size", 8)),
        autocast=next((dtype for key, dtype in _HALF_PRECISION.items() if config.training.get(key)), None),
    )
    return builder.add([row for rows in (tokenized.train, tokenized.eval) if rows is not None for row in rows], log)


@dataclasses.dataclass
class TeacherCacheBuilder:
    """Writer of a teacher cache: runs the model over the rows that the cache lacks and writes them in shards.

    The directory is created if it does not exist; one with other content or another teacher's cache is refused.
    """

    directory: Path
    model: nn.Module
    """Pre-trained model on its device; put into eval mode."""
    identity: TeacherIdentity
    collate: Callable[[Sequence[Any]], Mapping[str, Tensor]]
    """Function from rows to a batch with ``labels``."""
    _: dataclasses.KW_ONLY
    shift: bool
    """True if labels are aligned with their tokens (causal models) and must be shifted by one."""
    top_k: int
    batch_size: int = 8
    autocast: torch.dtype | None = None
    """Dtype of the forward; None for the model's own."""

    def __post_init__(self) -> None:
        self.model.eval()
        self.device = next(self.model.parameters()).device
        self.headless = HiddenStateExtractor(self.model)
        self._head_is_linear: bool | None = None
        from_first(self._open)

    def add(self, rows: Iterable[Mapping[str, Any]], log: Callable[[str], None] = lambda line: None) -> BuildReport:
        """Add the rows that the cache lacks, and log a line per shard. If interrupted, the cache keeps the shards written.

        In a block of `balora.turns.divided_among_processes` each process writes every P-th shard. The shards are those that one
        process writes, and another number of processes can continue.

        Raises:
            BALoraError: A shard is damaged or cannot be written, another process adds rows to the cache, or the processes do not
                share the directory.
        """
        rank, _ = division()
        busy = "Another process is building the teacher cache"
        with contextlib.nullcontext() if rank else locked(self.directory, busy, "teacher_cache"):
            return self._add(rows, log)

    def _add(self, rows: Iterable[Mapping[str, Any]], log: Callable[[str], None]) -> BuildReport:
        # Read in one process, because the others write shards before all have read.
        present, first = from_first(self._contents)
        new = list({key: row for row in rows if (key := row_key(row)) not in present}.items())
        new.sort(key=lambda item: len(item[1]["input_ids"]))  # similar lengths in a batch: little padding

        def write(number: int) -> tuple[float, int]:
            start = number * SHARD_ROWS
            keys, shard_rows = zip(*new[start : start + SHARD_ROWS], strict=True)
            teachers = [
                teacher
                for at in range(0, len(shard_rows), self.batch_size)
                for teacher in self._run_teacher(list(shard_rows[at : at + self.batch_size]))
            ]
            self._write_shard(first + number, keys, teachers)
            log(f"{start + len(keys):,} of {len(new):,} rows")
            tail = sum(float(teacher.log_tail_M.double().exp().sum()) for teacher in teachers)
            return tail, sum(map(len, teachers))

        shards = -(-len(new) // SHARD_ROWS)
        written = by_turns(write, shards)
        missing = [n for n in range(first, first + shards) if not self._shard(n).is_file()]
        if missing:
            raise BALoraError(
                f"The processes do not share the directory {self.directory}: {self._shard(missing[0]).name}, which another "
                "process has written, is not there. Set teacher_cache to a directory on a disk that all machines share."
            )
        size = sum(path.stat().st_size for path in self.directory.glob(SHARDS))
        tail, positions = sum(one for one, _ in written), sum(count for _, count in written)
        return BuildReport(
            self.directory, len(present) + len(new), len(new), size, tail / max(positions, 1), self.identity.temperature
        )

    def _contents(self) -> tuple[set[bytes], int]:
        """Return the keys of the cache's rows, and the number of the first shard to write."""
        first = 1 + max((int(path.stem.split("-")[1]) for path in self.directory.glob(SHARDS)), default=-1)
        return TeacherCache(self.directory).keys(), first

    def _shard(self, number: int) -> Path:
        return self.directory / f"shard-{number:05}.safetensors"

    def _open(self) -> None:
        """Create the directory and its index, or refuse a directory with other content."""
        directory, index_path = self.directory, self.directory / INDEX
        if index_path.is_file():
            index = read_index(directory)
            reasons = TeacherIdentity.from_index(index).mismatches(self.identity)
            if self.top_k != index["top_k"]:
                reasons.append(f"It has {index['top_k']} tokens per position, not {self.top_k}.")
            raise_all(reasons, f"{directory} has the cache of another teacher; choose another directory or delete it")
            return
        # A process that was killed may have left the lock and an incomplete index.
        left = (LOCK, temporary_path(index_path).name)
        foreign = directory.is_dir() and any(entry.name not in left for entry in directory.iterdir())
        if foreign or (directory.exists() and not directory.is_dir()):
            raise BALoraError(f"{directory} is neither an empty directory nor a teacher cache. Choose another.")
        require_writable(directory, "teacher_cache")
        directory.mkdir(parents=True, exist_ok=True)
        index = {"format": FORMAT, "top_k": self.top_k, **dataclasses.asdict(self.identity)}
        write_text(index_path, json.dumps(index, indent=1))

    @torch.no_grad()
    def _run_teacher(self, rows: Sequence[Mapping[str, Any]]) -> list[TopKTeacher]:
        """Run the model over a batch of rows and return the top-k teacher of each row."""
        batch = {name: value.to(self.device) for name, value in self.collate(rows).items()}
        mask_BT, labels_M = valid_targets(batch.pop("labels"), shift=self.shift)
        options: dict[str, Any] = {
            "top_k": self.top_k,
            "temperature": self.identity.temperature,
            "targets_M": labels_M if self.identity.consistency_tokens == "non_target" else None,
        }
        inputs = {**batch, "use_cache": False}
        with torch.autocast(self.device.type, self.autocast) if self.autocast else contextlib.nullcontext():
            if self._head_is_linear is None:
                self._head_is_linear = self.headless.head_matches(self.model, inputs)
            if self._head_is_linear:
                hidden_BTd, _ = self.headless.hidden_states(self.model, inputs)
                head = self.headless.head()
                assert head is not None
                hidden_Md = hidden_BTd[mask_BT].to(head.weight_VD.dtype)
                teacher = TopKTeacher.of(hidden_Md, head, **options)
            else:
                logits_MV = self.model(**inputs).logits[mask_BT]
                teacher = TopKTeacher.of_logits(logits_MV, **options)
        stops = mask_BT.sum(dim=1).cumsum(0).tolist()
        return [teacher.at(slice(start, stop)) for start, stop in zip([0, *stops], stops, strict=False)]

    def _write_shard(self, number: int, keys: Sequence[bytes], teachers: Sequence[TopKTeacher]) -> None:
        lengths = torch.tensor([0, *map(len, teachers)])
        tokens_MK = torch.cat([teacher.tokens_MK for teacher in teachers]).cpu()
        small = int(tokens_MK.max()) < 2**15 if tokens_MK.numel() else True
        tensors = {
            "keys": torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(len(keys), -1),
            "offsets": lengths.cumsum(0),
            "tokens": tokens_MK.to(torch.int16 if small else torch.int32),
            # float16 changes a probability by at most 2^-11 p |log p|, which is below 2e-4.
            "log_probs": torch.cat([teacher.log_probs_MK for teacher in teachers]).cpu().half(),
            "log_tail": torch.cat([teacher.log_tail_M for teacher in teachers]).cpu().float(),
        }
        path = self._shard(number)
        temporary = temporary_path(path)
        temporary.unlink(missing_ok=True)
        try:
            save_file({name: value.contiguous() for name, value in tensors.items()}, temporary)
            apply_umask(temporary)
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise BALoraError(
                f"{path} cannot be written: {error.strerror or error}. The shards written before are kept; run the same command "
                "to continue."
            ) from error
