"""The GPUs that tests find, or the emulator's, and the marks of tests that need them."""

import _cgxffcv
import pytest

DEVICES = _cgxffcv.devices()
EMULATED = any(device["name"] == "emulated device" for device in DEVICES)
NCCL = EMULATED or (_cgxffcv.build_info()["nccl"] and len(DEVICES) > 1)
needs_gpu = pytest.mark.skipif(not DEVICES, reason=f"no GPU: {_cgxffcv.why_no_device()}")
needs_nccl = pytest.mark.skipif(not NCCL, reason="needs NCCL and two GPUs")
