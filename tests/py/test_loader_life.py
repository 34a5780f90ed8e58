"""What a loader leaves behind, and how it may be used: kept batches, early breaks, closing, Ctrl-C, threads."""

import gc
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import augment_reference as reference
import numpy as np
import pytest
import tiny_beton
from checkout import run_python

from cgxffcv.loader import Loader, OrderOption

N = 103
RANDOM = OrderOption.RANDOM


def pixels():
    return np.random.default_rng(5).integers(0, 256, (N, 16, 16, 3), dtype=np.uint8)


def test_batches_that_are_kept_stay_valid(path):
    loader = Loader(path, 8, num_workers=2, order=RANDOM, seed=1, pipelines={"image": []}, drop_last=False)
    kept = list(loader)
    again = list(loader)
    stats = loader.stats()
    assert stats["slots_held"] == 2 * 13 and stats["slots"] >= 26
    loader.close()
    del loader
    gc.collect()
    for image, label in kept + again:
        np.testing.assert_array_equal(image, pixels()[label[:, 0]])
        image[:] = 0  # a batch belongs to whoever holds it


def test_sample_numbers_are_the_programs_own(path):
    """They can be written to, and torch takes them without a warning; the loader goes by its own."""
    with Loader(path, 10, num_workers=1, ids=True) as loader:
        kept = []
        for *_, ids in [*loader, loader.get_batch(range(10))]:
            kept.append(ids.copy())
            ids[:] = -1
        np.testing.assert_array_equal(np.concatenate(kept), [*range(100), *range(10)])


def test_buffers_of_released_batches_are_given_back(path):
    """All except as many as can be in flight, and the two that a caller may hold."""
    with Loader(path, 8, num_workers=2, batches_ahead=3) as loader:
        kept = list(loader)
        assert loader.stats()["slots"] >= 12
        held = loader.stats()["memory_bytes"]
        kept.clear()
        gc.collect()
        stats = loader.stats()
        assert stats["slots"] == 5 and held - stats["memory_bytes"] >= 7 * stats["slot_bytes"]


def test_memory_is_bounded_and_reported(path):
    with Loader(path, 8, num_workers=2, batches_ahead=4) as loader:
        for _ in range(20):
            for image, label in loader:
                assert label.shape == (8, 1)
                del image, label
        stats = loader.stats()
    assert stats["slots"] <= 4 + 2 and stats["slots_held"] == 0
    assert stats["slot_bytes"] == 8 * 16 * 16 * 3 + 64 + 64
    assert stats["memory_peak_bytes"] < 7 * stats["slot_bytes"] + 8 * N + 4096
    assert stats["batches"] == 20 * 12 and stats["samples"] == 20 * 96 and stats["workers"] == 2


def process_state():
    """Threads, open files, and resident memory in KiB (0 under AddressSanitizer, which holds back freed memory), once
    everything that earlier tests have left is gone."""
    gc.collect()
    with open("/proc/self/status") as status, open("/proc/self/maps") as maps:
        lines = dict(line.split(":", 1) for line in status)
        plain = "libasan" not in maps.read()
    resident = int(lines["VmRSS"].split()[0]) if plain else 0
    return int(lines["Threads"]), len(os.listdir("/proc/self/fd")), resident


def test_ten_thousand_early_breaks_leave_nothing_behind(path):
    loader = Loader(path, 8, num_workers=2, order=RANDOM, seed=1)

    def run(times):
        for _ in range(times):
            for _batch in loader:
                break

    run(500)
    before = process_state()
    run(10_000)
    after = process_state()
    assert after[:2] == before[:2]
    assert after[2] - before[2] < 2048
    assert loader.stats()["slots"] <= 5
    loader.close()


def test_loaders_that_come_and_go_leave_nothing_behind(path):
    def run(times, close):
        for _ in range(times):
            loader = Loader(path, 8, num_workers=2, order=RANDOM, seed=1)
            next(iter(loader))
            loader.get_batch([1])
            if close:
                loader.close()

    run(20, True)
    before = process_state()
    run(150, True)
    run(150, False)
    after = process_state()
    assert after[:2] == before[:2] and after[2] - before[2] < 4096


def epoch_of(epoch):
    return reference.shuffled(range(N), 0, epoch)


def test_passes_run_side_by_side(path):
    before = process_state()
    with Loader(path, 8, num_workers=1, ids=True, order=RANDOM, seed=0) as loader:
        both = list(zip(loader, loader, strict=True))
        assert len(both) == 12
        for epoch in range(2):
            ids = np.concatenate([batches[epoch][-1] for batches in both])
            np.testing.assert_array_equal(ids, epoch_of(epoch)[:96])
        first = iter(loader)
        next(first)
        state = loader.state_dict()
        second = iter(loader)
        third = iter(loader)
        assert next(third)[-1].tolist() == epoch_of(4)[:8]
        assert next(second)[-1].tolist() == epoch_of(3)[:8]
        assert next(first)[-1].tolist() == epoch_of(2)[8:16]
        assert loader.state_dict() == {**state, "epoch": 4, "samples_done": 8}
        loader.batch_size = 4
        fourth = iter(loader)
        assert next(fourth)[-1].tolist() == epoch_of(5)[:4]
        assert [len(list(one)) for one in (second, first, fourth, third)] == [11, 10, 24, 11]
        held = iter(loader), iter(loader)
        next(held[0])
    for one in held:
        with pytest.raises(RuntimeError, match="Loader was closed"):
            next(one)
    del loader, first, second, third, fourth, both, held, one
    assert process_state()[:2] == before[:2]


def test_passes_that_are_given_up_leave_nothing_behind(path):
    loader = Loader(path, 8, num_workers=2, seed=1)
    current = iter(loader)
    next(current)
    threads, files, _ = process_state()
    for _ in range(200):
        current = iter(loader)
        next(current)
    assert process_state()[:2] == (threads, files)


def test_a_new_pass_over_resident_images_ends_the_old_one(path):
    with Loader(path, 8, ids=True, order=RANDOM, seed=0, resident=True) as loader:
        first = iter(loader)
        next(first)
        second = iter(loader)
        assert next(second)[-1].tolist() == epoch_of(1)[:8]
        with pytest.raises(RuntimeError, match="another pass"):
            next(first)
        del first
        assert len(list(second)) == 11
        with pytest.raises(StopIteration):
            next(second)


def test_exceptions_in_the_loop(path):
    loader = Loader(path, 8, num_workers=2)
    for _ in range(50):
        with pytest.raises(ZeroDivisionError):
            for _batch in loader:
                1 / 0  # noqa: B018
    assert len(list(loader)) == 12
    loader.close()


def test_closed_loaders_refuse(path):
    loader = Loader(path, 8)
    iterator = iter(loader)
    next(iterator)
    loader.close()
    loader.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(iterator)
    for call in (lambda: next(iter(loader)), loader.stats, lambda: len(loader), loader.state_dict):
        with pytest.raises(ValueError, match="closed"):
            call()


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """Few large JPEGs: a batch of them takes a while."""
    photo = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)
    name = tmp_path_factory.mktemp("slow") / "slow.beton"
    data = tiny_beton.jpeg(photo, 95)
    return tiny_beton.write(name, {"image": ("image", [data] * 12)}, page_size=1 << 24, sides=(1500, 1500))


def test_ctrl_c_while_waiting_loses_no_batch(slow):
    with Loader(slow, 12, num_workers=1, ids=True) as loader:
        iterator = iter(loader)
        timer = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            timer.start()  # within, where it may also ring early
            next(iterator)
        timer.join()
        assert next(iterator)[-1].tolist() == list(range(12))


def test_what_a_signal_raises_while_waiting_loses_no_batch(slow):
    """A handler's TimeoutError, say, is no failure of the pass."""

    def ring(number, frame):
        raise TimeoutError("rang")

    before = signal.signal(signal.SIGALRM, ring)
    try:
        with Loader(slow, 12, num_workers=1, ids=True) as loader:
            passes = []
            for _ in range(2):
                passes.append(iter(loader))  # not earlier: its batch could be ready before anybody waits for it
                with pytest.raises(TimeoutError, match="rang"):
                    signal.setitimer(signal.ITIMER_REAL, 0.02)
                    next(passes[-1])
            for batches in passes:
                assert next(batches)[-1].tolist() == list(range(12)) and list(batches) == []
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_use_by_two_threads_at_once_is_refused(slow):
    with Loader(slow, 12, num_workers=1, ids=True) as loader:
        iterator, found = iter(loader), []
        thread = threading.Thread(target=lambda: found.append(next(iterator)[-1].tolist()))
        thread.start()
        while loader.stats()["workers"] == 0 or not thread.is_alive() and not found:
            pass
        refused = 0
        while thread.is_alive():
            try:
                loader.get_batch([])
            except RuntimeError as error:
                assert "another thread" in str(error)
                refused += 1
        thread.join()
        assert refused > 0 and found == [list(range(12))]
        loader.get_batch([])


def test_a_thread_that_is_refused_ends_no_pass(path):
    """Two threads take from one pass: who comes while the other is inside is refused, and nothing is lost."""
    with Loader(path, 1, num_workers=1, ids=True) as loader:
        batches, taken, refused = iter(loader), [], []

        def take():
            while True:
                try:
                    taken.append(int(next(batches)[-1][0]))
                except StopIteration:
                    return
                except RuntimeError as error:
                    refused.append(str(error))

        switching = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            for _ in range(200):
                with ThreadPoolExecutor(2) as pool:
                    list(pool.map(lambda _: take(), range(2)))
                assert sorted(taken) == list(range(N))
                if refused:
                    break
                batches, taken = iter(loader), []
        finally:
            sys.setswitchinterval(switching)
        assert refused and set(refused) == {"this Loader is in use by another thread"}


def test_a_pass_whose_end_another_thread_has_reached_is_over(path, monkeypatch):
    """The other thread comes to the end after this one has begun to look for a batch."""
    runs = Loader._runs
    with Loader(path, 8) as loader:
        batches = iter(loader)
        monkeypatch.setattr(Loader, "_runs", lambda self, number: batches.close() or runs(self, number))
        assert next(batches, "over") == "over"


def test_a_program_that_ends_within_a_pass_ends(path):
    code = f"""
from cgxffcv.loader import Loader
loader = Loader({str(path)!r}, 8)
iterator = iter(loader)
kept = next(iterator)
"""
    assert run_python("-c", code).stderr == ""


def test_a_forked_child_neither_uses_nor_waits_for_its_parents_threads(path):
    code = f"""
import gc, os, sys
from cgxffcv.loader import Loader
loader = Loader({str(path)!r}, 8, num_workers=2)
iterator = iter(loader)
kept = next(iterator)
child = os.fork()
if child == 0:
    try:
        next(iterator)
    except RuntimeError as error:
        assert "fork" in str(error), error
    assert kept[1][:, 0].tolist() == list(range(8))
    del iterator, loader, kept
    gc.collect()
    fresh = Loader({str(path)!r}, 8, num_workers=2)
    assert len(list(fresh)) == 12
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert len(list(iterator)) == 11
"""
    # From 3.12 on, Python itself warns the program that forks while threads run.
    allowed = ["-W", "ignore:This process (pid=:DeprecationWarning:__main__"]
    assert run_python(*allowed, "-c", code).stderr == ""
