"""Forward of both models over rows of tokens: statistics of every predicted token, without logits of a whole batch.

The base's last hidden states and its head are kept on disk. While the tuned model runs, a chunk's logits of both models are
made, compared, and dropped. A model whose head is not a known linear map leaves its logits instead.
Shapes: B rows, T positions, M predicted tokens of a batch, m tokens of a chunk, d hidden size, V vocabulary, S sampled tokens.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from balora.anchoring.rows import Row, collate
from balora.auditing.model_pair import SideName
from balora.errors import BALoraError
from balora.evaluation.model_under_test import LoadedModel
from balora.models.adapted_model import base_model_of
from balora.models.hidden_states import HiddenStateExtractor, valid_targets
from balora.models.lm_head import LinearHead

CHUNK_BYTES = 16 * 2**20
"""Bytes of a chunk's logits in float32; about five tensors of this size exist at a time."""
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
        parts: list[Table] = []
        hidden: list[NDArray[Any]] = []
        total = sum(_targets(row, self.causal) for row in rows)
        chosen = np.asarray(sorted(random.Random(f"tokens {self.seed}").sample(range(total), min(total, SAMPLED))))
        seen = 0
        for number, batch in enumerate(batches(rows, self.batch_size)):
            values_MX, labels_M, mask_BT = outputs.of([rows[i] for i in batch])
            name = self.folder / f"batch-{number:05}.safetensors"
            if self.compare and side == "base":
                save_file({"values": values_MX.cpu().contiguous()}, name)
            parts.append(outputs.statistics(values_MX, labels_M, None if reference is None else reference.batch(name)))
            where = mask_BT.nonzero().cpu().numpy()
            parts[-1]["row"] = np.asarray(batch, dtype=np.int32)[where[:, 0]]
            # Index of the predicted token in the row.
            parts[-1]["token"] = (where[:, 1] + int(self.causal)).astype(np.int32)
            parts[-1]["label"] = labels_M.cpu().numpy().astype(np.int32)
            if self.compare and outputs.head is not None:
                inside = chosen[(chosen >= seen) & (chosen < seen + len(labels_M))] - seen
                hidden.append(values_MX[torch.as_tensor(inside, device=values_MX.device)].float().cpu().numpy())
            seen += len(labels_M)
            if reference is not None:
                name.unlink()
        table = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        if hidden:
            table["hidden"] = np.concatenate(hidden)
            table["hidden_row"] = table["row"][chosen]
        np.savez(self.folder / f"{side}.npz", allow_pickle=False, **table)

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
    own, exponentials_mV = _normalised(logits_mV.float())
    scores_mV, total_m, best_m = own
    found = {
        "nll": total_m.log() - scores_mV.gather(1, labels_m[:, None]).squeeze(1),
        "entropy": total_m.log() - _dot(exponentials_mV, scores_mV) / total_m,
        "confidence": 1.0 / total_m,
        "likeliest": best_m,
        "hit": best_m == labels_m,
    }
    if reference_mV is not None:
        del exponentials_mV
        width = min(reference_mV.shape[1], logits_mV.shape[1])
        if width < logits_mV.shape[1]:  # tokens that only this model has
            (scores_mV, total_m, _), _ = _normalised(logits_mV[:, :width].float())
        (reference_scores_mV, reference_total_m, _), exponentials_mV = _normalised(reference_mV[:, :width].float())
        distance_m = _dot(exponentials_mV, reference_scores_mV.sub_(scores_mV)) / reference_total_m
        found["kl"] = distance_m - reference_total_m.log() + total_m.log()
    return found


def _normalised(logits_mV: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Return logits less their maximum, the sum of their exponentials and the likeliest tokens; and the exponentials."""
    best = logits_mV.max(-1)
    scores_mV = logits_mV - best.values[:, None]
    exponentials_mV = scores_mV.exp()
    return (scores_mV, exponentials_mV.sum(-1), best.indices), exponentials_mV


def _dot(weights_mV: Tensor, values_mV: Tensor) -> Tensor:
    """Return Σ weight · value of each row; 0 · ∞ is 0 (a token that the model rules out)."""
    sums_m = torch.linalg.vecdot(weights_mV, values_mV)
    if bool(sums_m.isnan().any()):
        sums_m = torch.where(weights_mV > 0, weights_mV * values_mV, 0.0).sum(-1)
    return sums_m


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
        vocabulary = values_MX.shape[1] if self.head is None else self.head.vocabulary
        chunk = max(CHUNK_BYTES // (4 * vocabulary), 16)
        parts = []
        for start in range(0, len(values_MX), chunk):
            rows = slice(start, start + chunk)
            logits_mV = values_MX[rows] if self.head is None else self.head.logits(values_MX[rows])
            known = None if reference is None else reference(rows)
            parts.append(token_statistics(logits_mV, labels_M[rows], known))
        return {key: torch.cat([part[key] for part in parts]).cpu().numpy() for key in parts[0]}

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
