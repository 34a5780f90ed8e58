"""ToDevice keeps page-locked memory until its copy is done. A stand-in for torch decides when that is."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from cgxffcv.interop import torch as interop


class Event:
    def __init__(self):
        self.done, self.waited = False, False

    def record(self, stream):
        self.stream = stream

    def query(self):
        return self.done

    def synchronize(self):
        self.waited, self.done = not self.done, True


class Batch:
    def __init__(self, pinned=True, is_cuda=False):
        self.pinned, self.is_cuda, self.device = pinned, is_cuda, "cuda:0" if is_cuda else "cpu"

    def is_pinned(self):
        return self.pinned

    def to(self, device, non_blocking):
        return Batch(False, device.startswith("cuda"))


@pytest.fixture
def copies(monkeypatch):
    cuda = SimpleNamespace(Event=Event, current_stream=lambda device: f"the stream of {device}")
    monkeypatch.setattr(interop, "find_torch", lambda: SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(interop, "_copies", interop.Copies(most=2))
    return interop._copies


def test_sources_stay_until_their_copies_are_done(copies):
    first, second = Batch(), Batch()
    assert interop.move(first, "cuda:0", True).is_cuda
    interop.move(second, "cuda:0", True)
    assert [source for source, _ in copies._kept] == [first, second]
    event = copies._kept[0][1]
    assert event.stream == "the stream of cuda:0" and not event.waited
    event.done = True
    third = Batch()
    interop.move(third, "cuda:0", True)
    assert [source for source, _ in copies._kept] == [second, third]
    assert not event.waited


def test_the_caller_waits_for_the_oldest_of_too_many(copies):
    batches = [Batch() for _ in range(4)]
    for batch in batches:
        interop.move(batch, "cuda:0", True)
    assert [source for source, _ in copies._kept] == batches[2:]


@pytest.mark.parametrize(
    "batch, device, beside",
    [
        (Batch(pinned=False), "cuda:0", True),  # which torch copies aside before it returns
        (Batch(), "cpu", True),
        (Batch(), "cuda:0", False),
        (Batch(is_cuda=True), "cuda:1", True),
    ],
)
def test_nothing_else_is_kept(copies, batch, device, beside):
    interop.move(batch, device, beside)
    assert not copies._kept


def test_threads(copies):
    def work(_):
        for _ in range(200):
            interop.move(Batch(), "cuda:0", True)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(copies._kept) == 2
