"""One process of a run fails or is killed: the others end soon, with its reason, and run.json keeps it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

import failing
import launched
from balora.errors import BALoraError
from balora.training.distributed import peers
from balora.training.distributed.peers import Failure, PeerFailed, Peers, lost_connection


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("failing")
    launched.write_inputs(folder)
    return folder


KILLED = "ended without a message: it was killed, or its machine ran out of memory"
CASES = [
    ("0", "2", "killed", f"Process 0 of 2 (numbered from 0) {KILLED}"),
    ("1", "1", "killed", f"Process 1 of 2 (numbered from 0) {KILLED}"),
    ("1", "2", "error", "The disk of this machine is full."),
    ("1", "prepare", "error", "The disk of this machine is full."),
    ("0", "save", "fault", "unexpected RuntimeError: a fault of this machine"),
    ("1", "checkpoint", "killed", f"Process 1 of 2 (numbered from 0) {KILLED}"),
    ("1", "split", "killed", f"Process 1 of 2 (numbered from 0) {KILLED}"),
    ("0", "teacher", "killed", f"Process 0 of 2 (numbered from 0) {KILLED}"),
    ("0", "anchors", "killed", f"Process 0 of 2 (numbered from 0) {KILLED}"),
    ("0", "evaluate", "killed", f"Process 0 of 2 (numbered from 0) {KILLED}"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "point", "way", "reason"), CASES)
def test_the_first_failure_is_what_the_user_reads(rank, point, way, reason, folder):
    output = f"{rank}-{point}-{way}"
    config, stamp = failing.write_config(folder, point, output), folder / "failed"
    stamp.unlink(missing_ok=True)  # of another case
    done = launched.launch(
        rank, point, way, "train", config, script=Path(failing.__file__), BALORA_FAILED_AT=str(stamp)
    )
    assert time.time() - float(stamp.read_text()) < 30.0
    lines = [line for line in done.stderr.splitlines() if line.startswith("balora:")]
    assert done.returncode != 0
    assert len(lines) == 1 and reason in lines[0], done.stderr[-3000:]
    assert not any(word in "".join(lines) for word in ("gloo", "Traceback"))
    if point not in failing.BEFORE_THE_RECORD:
        record = json.loads((folder / output / "run.json").read_text())
        assert record["status"] == "failed" and reason in record["error"]
        # The launcher's own report has the times of the failures.
    if point == "2" and way == "killed":
        again = launched.launch("train", config)
        assert again.returncode == 0, again.stderr[-2000:]


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:41734"), True),
        (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Read error: Connection reset by peer"), True),
        (RuntimeError("NCCL communicator was aborted on rank 1."), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"), False),
        (BALoraError("The connection was reset by the hub"), False),
        (ValueError("gloo"), False),
    ],
)  # fmt: skip
def test_a_lost_connection_is_told_from_a_cause(error, is_lost):
    assert lost_connection(error) is is_lost


def test_one_process_has_no_peers(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(RuntimeError, match="as it was"), Peers().watched():
        raise RuntimeError("gloo: as it was")


class Store(dict):
    """A store in this process."""

    def check(self, keys):
        return all(key in self for key in keys)

    def set(self, key, value):
        self[key] = value

    def get(self, key):
        return self[key]

    def compare_set(self, key, expected, value):
        return self.setdefault(key, value).encode()


def member(store: Store, rank: int, monkeypatch, written: list[str]) -> Peers:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    one = Peers(written.append)
    one._store = store
    return one


def test_the_second_process_to_fail_gives_the_reason_of_the_first(monkeypatch):
    store, written = Store(), []
    monkeypatch.setattr(peers, "_ignore_sigterm", lambda: None)
    first, second = (member(store, rank, monkeypatch, written) for rank in (1, 0))
    with pytest.raises(BALoraError, match="NaN"), first.watched():
        raise BALoraError("The task loss became NaN.")
    with pytest.raises(PeerFailed, match=r"NaN\. \(Process 1 of 2") as caught, second.watched():
        raise RuntimeError("gloo: Connection closed by peer")
    assert caught.value.spoken, "the first process has printed it"
    assert len(written) == 2 and "NaN" in written[1]


def test_a_process_that_is_gone_without_a_word_is_named(monkeypatch):
    store, written = Store(), []
    monkeypatch.setattr(peers, "_ignore_sigterm", lambda: None)
    survivor = member(store, 1, monkeypatch, written)
    gone = {"host": peers.socket.gethostname(), "pid": 2**22 + 1, "start": "1"}
    store["member/0"] = json.dumps(gone)
    begun = time.monotonic()
    with pytest.raises(PeerFailed, match=r"Process 0 of 2 .* was killed") as caught, survivor.watched():
        raise RuntimeError("gloo: Connection closed by peer")
    assert time.monotonic() - begun < 2.0
    assert not caught.value.spoken and written, "this process prints and records it"


def test_a_process_that_left_in_good_order_has_not_failed(monkeypatch):
    store = Store()
    stays = member(store, 0, monkeypatch, [])
    store["member/1"] = json.dumps({"host": peers.socket.gethostname(), "pid": 2**22 + 1, "start": "1"})
    store["left/1"] = ""
    assert stays.failed() is None


def test_a_failure_names_its_process():
    assert Failure(0, "No.", True).text() == "No."
    assert Failure(3, "No.", True).text().startswith("No. (Process 3 of")
