"""For the C tests: one folder of objects a session."""

import pytest


@pytest.fixture(scope="session")
def objects(tmp_path_factory):
    return tmp_path_factory.mktemp("objects")
