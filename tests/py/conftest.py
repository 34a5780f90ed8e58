"""Fixtures that several files of this folder use."""

import _cgxffcv
import pytest
import small_data
from loader_data import write_plain


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """(training file, test file) for small trainings."""
    return small_data.make(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def path(tmp_path_factory):
    """A file of small images for loaders."""
    return write_plain(tmp_path_factory.mktemp("plain"))


def available():
    names = ["scalar"]
    for name in ("avx2", "avx512"):
        if _cgxffcv.build_info()["cpu"][name]:
            names.append(name)
    return names


@pytest.fixture(params=available())
def kernels(request):
    """Runs the test with every instruction set that this processor has."""
    _cgxffcv.quantize_kernels(request.param)
    yield request.param
    _cgxffcv.quantize_kernels(None)


def pytest_collection_modifyitems(items):
    """oneDNN computes in bfloat16 only with AVX-512: on other processors a bfloat16 network is refused."""
    if _cgxffcv.build_info()["cpu"]["avx512"]:
        return
    lacks = pytest.mark.skip(reason="this processor has no AVX-512, so oneDNN has no bfloat16 convolutions")
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if parameters.get("precision") == "bfloat16" or "needs_bfloat16" in item.keywords:
            item.add_marker(lacks)
