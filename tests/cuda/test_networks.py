"""Whole networks on a GPU: the tests of the CPU backend run again on this one, and the error of 16 bits."""

import json
from pathlib import Path

import network_cases
import numpy as np
import pytest
from checkout import run_python
from gpus import EMULATED, needs_gpu
from network_cases import *  # noqa: F403 (its tests, which are collected here)
from network_cases import NETWORKS, batch, bytes_of_steps, make, relative, step_and_reference

from cgxffcv import nn

pytestmark = needs_gpu


@pytest.fixture(autouse=True)
def on_a_gpu(monkeypatch):
    monkeypatch.setattr(network_cases, "BACKEND", "cuda")


def test_backend_and_precision():
    network = nn.Network(nn.airbench((8, 16, 24)), backend="cuda")
    assert (network.backend, network.precision) == ("cuda", "float16")
    assert "float16, cuda" in repr(network)


@pytest.mark.parametrize(("precision", "error"), [("bfloat16", 0.3), ("float16", 0.1)])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_in_16_bits_stays_near_the_reference(name, precision, error):
    """The error comes from a few decisions: which element is a maximum, which side of zero an activation is on."""
    total, actual, loss, expected = step_and_reference(make(NETWORKS[name](), precision), 40)
    assert total == pytest.approx(loss, rel=0.02 if precision == "bfloat16" else 0.002)
    assert relative(actual, expected) < error


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_same_bytes_every_time(name, precision):
    count, runs = (5, 2) if EMULATED else (21, 3)
    results = [bytes_of_steps(make(NETWORKS[name](), precision), count, 24) for _ in range(runs)]
    assert all(result == results[0] for result in results)


def test_what_python_writes_counts_from_the_next_call_on():
    network = make(NETWORKS["airbench"]())
    images, _ = batch(4, 32)
    plan = network.plan(4, 32, training=False)
    before = plan.evaluate(images)
    network.parameter("head.weight")[:] *= 2
    assert np.array_equal(plan.evaluate(images), 2 * before)
    network.parameter("head.weight")[:] /= 2
    network.running_variance("b1.norm1")[:] *= 1.5
    assert not np.array_equal(plan.evaluate(images), before)
    network.running_variance("b1.norm1")[:] /= 1.5
    assert np.array_equal(plan.evaluate(images), before)


def test_an_overflow_shows_in_the_loss():
    network = make(NETWORKS["airbench"](), "float16")
    images, labels = batch(5, 32)
    plan = network.plan(5, 32)
    plan.step(images * np.float32(1e6), labels)
    assert not np.isfinite(plan.take_totals()[0])
    network.initialise(0)
    plan.step(images, labels)
    assert np.isfinite(plan.take_totals()[0])


BUSY = """
import json, cgxffcv.app.doctor as doctor, _cgxffcv
found = doctor.cuda()["devices"]
try:
    _cgxffcv.select_device(1)
    error = None
except _cgxffcv.CudaError as e:
    error = str(e)
print(json.dumps([len(_cgxffcv.devices()), found, error]))
"""


@pytest.mark.skipif(not EMULATED, reason="only the emulator has a GPU that is in use")
def test_to_look_at_a_gpu_is_not_to_use_it():
    """The second GPU belongs to another process: it is listed, and only selecting it fails."""
    emulated = {"CGXFFCV_EMULATED_DEVICES": 2, "CGXFFCV_EMULATED_FAULT": "busy"}
    done = run_python("-c", BUSY, cwd=Path(__file__).parent, **emulated)
    count, (first, second), error = json.loads(done.stdout)
    assert count == 2 and "another process holds the GPU" in error
    assert first["problem"] is None and 0 < first["free_bytes"] <= first["memory_bytes"]
    assert second["problem"] is None and second["free_bytes"] is None
