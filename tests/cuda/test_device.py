"""The device room: a program of checks (device_room.cu), and its message if there is no usable GPU."""

from pathlib import Path

import programs
import pytest

pytestmark = pytest.mark.medium

PROGRAM = Path(__file__).resolve().parent / "device_room.cu"


@pytest.mark.parametrize("streams", ["at once", "late"])
def test_room(built, streams):
    done = programs.run(built(PROGRAM), CGXFFCV_EMULATED_STREAMS=streams)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checks, 0 failures" in done.stdout


FAULTS = [
    ("no_driver", ["no NVIDIA driver is loaded", "CUDA 13.0"]),
    ("old_driver", ["supports CUDA 11.4", "needs 13.0", "update the driver"]),
    ("old_gpu", ["compute capability 6.1", "needs 7.5 or newer"]),
    ("no_code", ["compute capability 9.0", "(for emulated)", "rebuild with CGXFFCV_CUDA_ARCH=90"]),
]


@pytest.mark.parametrize(("fault", "words"), FAULTS, ids=[fault for fault, _ in FAULTS])
def test_unusable_gpu_is_explained(built, fault, words):
    if not built.emulated:
        pytest.skip("only the emulator can be another machine")
    done = programs.run(built(PROGRAM), "select", CGXFFCV_EMULATED_FAULT=fault)
    assert done.returncode == 1
    assert [word for word in words if word not in done.stdout] == [], done.stdout


def test_no_device_is_explained(built):
    hidden = {"CGXFFCV_EMULATED_DEVICES": "0"} if built.emulated else {"CUDA_VISIBLE_DEVICES": ""}
    done = programs.run(built(PROGRAM), "select", **hidden)
    assert done.returncode == 1
    assert "no CUDA device" in done.stdout
    assert "CUDA_VISIBLE_DEVICES" in done.stdout


@pytest.mark.parametrize("wish", ["plian", "1", "plain,"])
def test_launches_of_an_unknown_kind_are_refused(built, wish):
    done = programs.run(built(PROGRAM), "select", CGXFFCV_LAUNCH=wish)
    assert done.returncode == 1
    assert f"CGXFFCV_LAUNCH='{wish}': plain is expected" in done.stdout


def test_several_devices(built):
    if not built.emulated:
        pytest.skip("only the emulator has as many devices as one likes")
    done = programs.run(built(PROGRAM), CGXFFCV_EMULATED_DEVICES="3")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("streams", "seen"), [("at once", [100, 100, 100]), ("late", [0, 0, 100])])
def test_late_streams_show_missing_waits(built, streams, seen):
    """Without a wait for the event, without a wait for the copy, with both."""
    if not built.emulated:
        pytest.skip("on a GPU the outcome is open")
    done = programs.run(built(PROGRAM), "early", CGXFFCV_EMULATED_STREAMS=streams)
    assert done.returncode == 0, done.stdout
    assert [int(line) for line in done.stdout.split()] == seen
