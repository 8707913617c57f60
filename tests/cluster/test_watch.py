"""Which process is behind when none goes on."""

from __future__ import annotations

import threading
import time

import pytest
from torch.distributed import HashStore

from ovsl.cluster.watch import Sign, Watch
from ovsl.errors import is_lost_connection, sentence


class Heard:
    """Three processes in one, each with its watch, and what they complained of."""

    def __init__(self, patience: float = 1.0) -> None:
        self.store = HashStore()
        self.complaints: dict[int, str] = {}
        self.all_complained = threading.Event()
        self.watches = [Watch(self.store, rank, 3, patience, self.listener(rank)) for rank in range(3)]

    def listener(self, rank: int):
        def listen(complaint: str) -> None:
            self.complaints[rank] = complaint
            if len(self.complaints) == 3:
                self.all_complained.set()

        return listen


@pytest.fixture
def heard():
    heard = Heard()
    yield heard
    for watch in heard.watches:
        watch.stop()


def test_the_process_that_is_behind_is_named_by_all(heard: Heard) -> None:
    for rank, watch in enumerate(heard.watches):
        watch.mark((8, 1 if rank == 1 else 2), "in the forward pass" if rank == 1 else "in the backward pass")
        watch.start()
    assert heard.all_complained.wait(30)
    for complaint in heard.complaints.values():
        behind, waiting = complaint.split(" Waiting: ")
        assert behind.startswith("No process has gone on for 1 seconds: rank 1 (process ")
        assert behind.endswith("is in the forward pass.")
        assert "rank 0" in waiting
        assert "rank 2" in waiting


def test_nobody_is_suspected_while_one_moves(heard: Heard) -> None:
    for watch in heard.watches:
        watch.mark((3, 4), "in an evaluation")
        watch.start()
    for number in range(30):
        heard.watches[2].mark((3, 4), f"in batch {number} of an evaluation")
        time.sleep(0.1)
    assert not heard.complaints


def test_a_process_without_a_sign_of_life_is_told_from_one_that_hangs(heard: Heard) -> None:
    for rank, watch in enumerate(heard.watches):
        watch.mark((1, 1), "in the forward pass")
        if rank != 2:
            watch.start()
    heard.watches[2].tell("in the forward pass")  # and no more
    deadline = time.monotonic() + 30
    while len(heard.complaints) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    silent = [part for part in heard.complaints[0].split("; ") if "gives no sign of life" in part]
    assert len(silent) == 1
    assert silent[0].startswith("rank 2")


def test_one_that_ends_says_why(heard: Heard) -> None:
    for watch in heard.watches:
        watch.start()
    heard.watches[1].tell("ended by ValueError: this process fails")
    heard.watches[1].stop()
    lost = heard.watches[0].lost()
    assert lost is not None
    assert "rank 1 (process" in lost
    assert lost.endswith("ended by ValueError: this process fails")


def test_a_sign_is_read_as_it_was_written() -> None:
    sign = Sign(3, 4, (1, 2), "doing", "home")
    assert Sign.of(sign.text()) == sign


@pytest.mark.parametrize(
    "text",
    [
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4711",
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Read error [127.0.0.1]:1: Connection reset by peer",
    ],
)
def test_a_lost_connection_is_one_sentence(text: str) -> None:
    assert is_lost_connection(RuntimeError(text))
    assert sentence(RuntimeError(text)) == (
        "Another process of this run was lost, and its own output says why; the same command goes on.",
        1,
    )
    assert not is_lost_connection(ValueError(text))


def test_a_dead_worker_is_one_sentence() -> None:
    said = sentence(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "))
    assert said is not None
    assert "worker (pid 7) is killed by signal: Killed)" in said[0]
    assert said[1] == 1
