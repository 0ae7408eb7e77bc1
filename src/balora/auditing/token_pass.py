"""Forward of both models over rows of tokens: statistics of every predicted token, without logits of a whole batch.

Logits of both models exist for a chunk of tokens at a time. If both models are one set of weights, each batch runs through
both in turn. Else the base's last hidden states and its head are kept on disk until the tuned model runs; a model whose head
is not a known linear map leaves its logits instead.
Shapes: B rows, T positions, M predicted tokens of a batch, m tokens of a chunk, d hidden size, V vocabulary, S sampled tokens.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from balora.anchoring.rows import Row, collate
from balora.auditing.model_pair import SIDES, ModelPair, SideName
from balora.errors import BALoraError
from balora.evaluation.model_under_test import LoadedModel
from balora.models.adapted_model import base_model_of
from balora.models.hidden_states import HiddenStateExtractor, valid_targets
from balora.models.lm_head import LinearHead

CHUNK_BYTES = 16 * 2**20
"""Bytes of a chunk's logits in float32. They are one matrix product."""
SLICE_BYTES = 2**20
"""Bytes of the logits whose statistics are computed at a time on a CPU: they stay in its cache."""
SAMPLED = 2048
"""Tokens whose hidden states are kept for the effective rank."""
Table = dict[str, NDArray[Any]]
SIDE_COLUMNS = ("nll", "entropy", "confidence", "likeliest", "hit")


class TokenPass:
    """Statistics of two models at the same tokens.

    Args:
        folder: Folder for what is kept between the models.
        rows: Returns the rows: ``input_ids``, and ``labels`` with -100 at tokens that do not count.
        causal: Whether a model predicts the next token of its input; else ``labels`` are an encoder-decoder's responses.
        batch_size: Rows in a batch.
        compare: Whether the divergence of the models is computed, for which hidden states are kept.
        seed: Seed of the sampled tokens.
    """

    def __init__(
        self,
        folder: Path,
        rows: Callable[[], Sequence[Row]],
        *,
        causal: bool,
        batch_size: int,
        compare: bool,
        seed: int = 0,
    ) -> None:
        self.folder, self._rows, self.causal = folder, rows, causal
        self.batch_size, self.compare, self.seed = batch_size, compare, seed

    def run(self, loaded: LoadedModel, side: SideName) -> None:
        """Run one of the models; the base must be first."""
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = self._rows()
        outputs = _Outputs(loaded, rows, self.causal)
        reference = _Reference(self.folder, outputs) if self.compare and side == "tuned" else None
        if self.compare and side == "base":
            outputs.save_head(self.folder / "head.safetensors")
        table = self._table(rows, outputs)
        for number, batch in enumerate(batches(rows, self.batch_size)):
            values_MX, labels_M, mask_BT = outputs.of([rows[i] for i in batch])
            name = self.folder / f"batch-{number:05}.safetensors"
            if self.compare and side == "base":
                save_file({"values": values_MX.cpu().contiguous()}, name)
            known = None if reference is None else reference.batch(name)
            table.add(batch, values_MX, labels_M, mask_BT, outputs.statistics(values_MX, labels_M, known))
            if reference is not None:
                name.unlink()
        table.save(self.folder / f"{side}.npz")

    def run_both(self, pair: ModelPair) -> None:
        """Run both models, which are two states of one set of weights, over each batch in turn. Nothing waits on the disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = self._rows()
        outputs: dict[SideName, _Outputs] = {}
        for side in SIDES:
            with pair.side(side) as loaded:
                outputs[side] = _Outputs(loaded, rows, self.causal)
        tables = {side: self._table(rows, outputs[side]) for side in SIDES}
        for batch in batches(rows, self.batch_size):
            values: dict[SideName, Tensor] = {}
            for side in SIDES:
                with pair.side(side):
                    values[side], labels_M, mask_BT = outputs[side].of([rows[i] for i in batch])
            found = _compared(outputs, values, labels_M)
            for side in SIDES:
                tables[side].add(batch, values[side], labels_M, mask_BT, found[side])
        for side in SIDES:
            tables[side].save(self.folder / f"{side}.npz")

    def _table(self, rows: Sequence[Row], outputs: _Outputs) -> _TableOfTokens:
        total = sum(_targets(row, self.causal) for row in rows)
        chosen = np.asarray(sorted(random.Random(f"tokens {self.seed}").sample(range(total), min(total, SAMPLED))))
        return _TableOfTokens(chosen if self.compare and outputs.head is not None else None, self.causal)

    def tables(self) -> tuple[Table, Table]:
        """Return the statistics of the base and of the tuned model, a column an array over tokens."""
        return _load(self.folder / "base.npz"), _load(self.folder / "tuned.npz")


def batches(rows: Sequence[Row], size: int) -> list[list[int]]:
    """Return the numbers of the rows in batches of similar length, the longest first."""
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i]["input_ids"]), i))
    return [order[at : at + size] for at in range(0, len(order), size)]


def token_statistics(logits_mV: Tensor, labels_m: Tensor, reference_mV: Tensor | None = None) -> dict[str, Tensor]:
    r"""Return the statistics of some tokens from their logits.

    Args:
        logits_mV: Logits of the model.
        labels_m: The tokens that come.
        reference_mV: Logits of the base; with them ``kl`` is :math:`\mathrm{KL}(base \,\|\, model)` in nats.

    Returns:
        By name, m values each: ``nll`` and ``entropy`` in nats, ``confidence`` (probability of the likeliest token),
        ``likeliest`` (that token), ``hit`` (whether it comes), and ``kl`` with a reference.
    """
    own = _normalise(logits_mV)
    found = _own_statistics(own, labels_m)
    if reference_mV is not None:
        width = min(reference_mV.shape[1], logits_mV.shape[1])
        if width < logits_mV.shape[1]:  # tokens that only this model has
            own = _normalise(logits_mV[:, :width])
        found["kl"] = _divergence(_normalise(reference_mV[:, :width]), own)
    return found


def pair_statistics(base_mV: Tensor, tuned_mV: Tensor, labels_m: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return `token_statistics` of the base and of the tuned model, with ``kl``, from logits of one shape."""
    base, tuned = _normalise(base_mV), _normalise(tuned_mV)
    found = _own_statistics(base, labels_m), _own_statistics(tuned, labels_m)
    found[1]["kl"] = _divergence(base, tuned)
    return found


class _Normalised(NamedTuple):
    scores_mV: Tensor
    """Logits less their maximum."""
    exponentials_mV: Tensor
    total_m: Tensor
    """Sum of the exponentials."""
    likeliest_m: Tensor


def _normalise(logits_mV: Tensor) -> _Normalised:
    logits_mV = logits_mV.float()
    best = logits_mV.max(-1)
    scores_mV = logits_mV - best.values[:, None]
    exponentials_mV = scores_mV.exp()
    return _Normalised(scores_mV, exponentials_mV, exponentials_mV.sum(-1), best.indices)


def _own_statistics(own: _Normalised, labels_m: Tensor) -> dict[str, Tensor]:
    log_total_m = own.total_m.log()
    return {
        "nll": log_total_m - own.scores_mV.gather(1, labels_m[:, None]).squeeze(1),
        "entropy": log_total_m - _dot(own.exponentials_mV, own.scores_mV) / own.total_m,
        "confidence": 1.0 / own.total_m,
        "likeliest": own.likeliest_m,
        "hit": own.likeliest_m == labels_m,
    }


def _divergence(base: _Normalised, tuned: _Normalised) -> Tensor:
    """Return KL(base ‖ tuned) of each row in nats. Overwrites the base's scores."""
    distance_m = _dot(base.exponentials_mV, base.scores_mV.sub_(tuned.scores_mV)) / base.total_m
    return distance_m - base.total_m.log() + tuned.total_m.log()


def _dot(weights_mV: Tensor, values_mV: Tensor) -> Tensor:
    """Return Σ weight · value of each row; 0 · ∞ is 0 (a token that the model rules out)."""
    sums_m = torch.linalg.vecdot(weights_mV, values_mV)
    if bool(sums_m.isnan().any()):
        sums_m = torch.where(weights_mV > 0, weights_mV * values_mV, 0.0).sum(-1)
    return sums_m


class _TableOfTokens:
    """Statistics of one model's tokens, collected batch by batch.

    Args:
        chosen: Numbers of the tokens whose hidden states are kept for the effective rank; None for none.
        causal: As for `TokenPass`.
    """

    def __init__(self, chosen: NDArray[Any] | None, causal: bool) -> None:
        self.chosen, self.causal = chosen, causal
        self._parts: list[Table] = []
        self._hidden: list[NDArray[Any]] = []
        self._seen = 0

    def add(self, batch: Sequence[int], values_MX: Tensor, labels_M: Tensor, mask_BT: Tensor, found: Table) -> None:
        """Add the tokens of a batch, which is given by the numbers of its rows."""
        where = mask_BT.nonzero().cpu().numpy()
        self._parts.append({
            **found,
            "row": np.asarray(batch, dtype=np.int32)[where[:, 0]],
            "token": (where[:, 1] + int(self.causal)).astype(np.int32),  # index of the predicted token in the row
            "label": labels_M.cpu().numpy().astype(np.int32),
        })  # fmt: skip
        if self.chosen is not None:
            inside = (self.chosen >= self._seen) & (self.chosen < self._seen + len(labels_M))
            index_S = torch.as_tensor(self.chosen[inside] - self._seen, device=values_MX.device)
            self._hidden.append(values_MX[index_S].float().cpu().numpy())
        self._seen += len(labels_M)

    def save(self, path: Path) -> None:
        """Write the table: one array for each column."""
        table = {key: np.concatenate([part[key] for part in self._parts]) for key in self._parts[0]}
        if self.chosen is not None:
            table["hidden"] = np.concatenate(self._hidden)
            table["hidden_row"] = table["row"][self.chosen]
        np.savez(path, allow_pickle=False, **table)


class _Outputs:
    """Outputs of one model at the predicted tokens: hidden states with its head, or logits."""

    def __init__(self, loaded: LoadedModel, rows: Sequence[Row], causal: bool) -> None:
        self.loaded, self.causal = loaded, causal
        self.extractor = HiddenStateExtractor(loaded.model)
        tokenizer = loaded.target_tokenizer or loaded.tokenizer
        self.pad = int(loaded.tokenizer.pad_token_id or tokenizer.pad_token_id or 0)
        shortest = min(rows, key=lambda row: len(row["input_ids"]))
        matches = self.extractor.head_matches(loaded.model, self._inputs([shortest])[0])
        self.head: LinearHead | None = None
        if matches and (head := self.extractor.head()) is not None:
            self.head = head.detach()

    def of(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
        """Return hidden states or logits (M × X), the tokens to predict (M), and the mask of their positions (B × T)."""
        inputs, labels_BT = self._inputs(rows)
        mask_BT, labels_M = valid_targets(labels_BT, shift=self.causal)
        if self.head is None:
            return self.loaded.model(**inputs).logits[mask_BT], labels_M, mask_BT
        hidden_BTd, _ = self.extractor.hidden_states(self.loaded.model, inputs)
        return hidden_BTd[mask_BT].to(self.head.weight_VD.dtype), labels_M, mask_BT

    def statistics(self, values_MX: Tensor, labels_M: Tensor, reference: Callable[[slice], Tensor] | None) -> Table:
        """Return the statistics of a batch, computed chunk by chunk."""
        parts = []
        for rows, slices in self.chunks(values_MX):
            logits_mV = self.logits(values_MX[rows])
            known = None if reference is None else reference(rows)
            parts += [
                token_statistics(logits_mV[part], labels_M[rows][part], None if known is None else known[part])
                for part in slices
            ]
        return _joined(parts)

    def logits(self, values_mX: Tensor) -> Tensor:
        """Return the logits of some tokens from what `of` returned for them."""
        return values_mX if self.head is None else self.head.logits(values_mX)

    def chunks(self, values_MX: Tensor) -> Iterator[tuple[slice, list[slice]]]:
        """Yield chunks of a batch's tokens, each with the slices of it whose statistics are computed at a time."""
        row_bytes = 4 * (values_MX.shape[1] if self.head is None else self.head.vocabulary)
        chunk = max(CHUNK_BYTES // row_bytes, 16)
        # A GPU computes a chunk at once: there a kernel's start costs more than memory.
        part = max(SLICE_BYTES // row_bytes, 4) if values_MX.device.type == "cpu" else chunk
        for start in range(0, len(values_MX), chunk):
            size = min(chunk, len(values_MX) - start)
            yield slice(start, start + size), [slice(at, min(at + part, size)) for at in range(0, size, part)]

    def save_head(self, path: Path) -> None:
        """Keep the head, for the logits of the hidden states that are kept."""
        if self.head is None:
            return
        tensors = {"weight": self.head.weight_VD.cpu().contiguous()}
        if self.head.bias_V is not None:
            tensors["bias"] = self.head.bias_V.cpu().contiguous()
        scale, cap = self.head.logit_scale, self.head.softcap
        about = {"scale": repr(scale), "softcap": "" if cap is None else repr(cap), "digest": _digest(self.head)}
        save_file(tensors, path, metadata=about)

    def _inputs(self, rows: Sequence[Row]) -> tuple[dict[str, Any], Tensor]:
        batch = collate(rows, self.pad, causal=self.causal)
        batch = {name: tensor.to(self.loaded.device) for name, tensor in batch.items()}
        labels_BT = batch.pop("labels")  # with them transformers would compute a loss, which needs all logits
        if not self.causal:
            shift_right = getattr(base_model_of(self.loaded.model), "prepare_decoder_input_ids_from_labels", None)
            if shift_right is None:
                raise BALoraError(
                    f"{type(self.loaded.model).__name__} does not make decoder inputs from responses, so it cannot be audited."
                )
            batch["decoder_input_ids"] = shift_right(labels=labels_BT.clone())
        return {**batch, "use_cache": False}, labels_BT


def _compared(
    outputs: Mapping[SideName, _Outputs], values: Mapping[SideName, Tensor], labels_M: Tensor
) -> dict[SideName, Table]:
    """Return the statistics of both models at the tokens of a batch."""
    base, tuned = outputs["base"], outputs["tuned"]
    parts = []
    for rows, slices in tuned.chunks(values["tuned"]):
        before_mV, after_mV = base.logits(values["base"][rows]), tuned.logits(values["tuned"][rows])
        parts += [pair_statistics(before_mV[part], after_mV[part], labels_M[rows][part]) for part in slices]
    return {"base": _joined([found[0] for found in parts]), "tuned": _joined([found[1] for found in parts])}


def _joined(parts: Sequence[Mapping[str, Tensor]]) -> Table:
    return {key: torch.cat([part[key] for part in parts]).cpu().numpy() for key in parts[0]}


class _Reference:
    """The base's outputs, read from disk batch by batch."""

    def __init__(self, folder: Path, outputs: _Outputs) -> None:
        self.device = outputs.loaded.device
        self.head: LinearHead | None = None
        path = folder / "head.safetensors"
        if not path.is_file():
            return
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            # Nearly every fine-tuning leaves the head alone; then it is in memory once.
            if outputs.head is not None and about["digest"] == _digest(outputs.head):
                self.head = outputs.head
                return
            tensors = {name: file.get_tensor(name).to(self.device) for name in file.keys()}  # noqa: SIM118
        cap = about.get("softcap")
        self.head = LinearHead(
            tensors["weight"], tensors.get("bias"), float(about["scale"]), float(cap) if cap else None
        )

    def batch(self, path: Path) -> Callable[[slice], Tensor]:
        """Return a function that gives the base's logits at some tokens of a batch."""
        with safe_open(path, "pt") as file:
            values_MX = file.get_tensor("values").to(self.device)
        head = self.head
        return lambda rows: values_MX[rows] if head is None else head.logits(values_MX[rows])


def _digest(head: LinearHead) -> str:
    """Return a digest of everything that a head computes with."""
    digest = hashlib.sha256(repr((head.logit_scale, head.softcap, head.weight_VD.dtype, head.weight_VD.shape)).encode())
    for tensor in (head.weight_VD, head.bias_V):
        if tensor is not None:
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _targets(row: Row, causal: bool) -> int:
    labels = row.get("labels", row["input_ids"])
    return sum(label != -100 for label in (labels[1:] if causal else labels))


def _load(path: Path) -> Table:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}
