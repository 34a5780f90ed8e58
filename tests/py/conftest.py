"""What several files of this folder ask for."""

import _cgxffcv
import pytest


def available():
    names = ["scalar"]
    for name in ("avx2", "avx512"):
        if _cgxffcv.build_info()["cpu"][name]:
            names.append(name)
    return names


@pytest.fixture(params=available())
def kernels(request):
    """The test runs on every instruction set that this processor has."""
    _cgxffcv.quantize_kernels(request.param)
    yield request.param
    _cgxffcv.quantize_kernels(None)
