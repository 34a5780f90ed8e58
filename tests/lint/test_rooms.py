"""The rules of the rooms: which folder of csrc/ may include which, and which file may use which library."""

import re
from pathlib import Path

import pytest
from checkout import CSRC
from rooms import MAY_INCLUDE, ONLY_IN, SEAMS, code, includes, sources

ALLOCATION = re.compile(r"\b(malloc|calloc|realloc|free|aligned_alloc|posix_memalign|strdup)\s*\(")


def test_there_are_sources():
    assert len(sources()) > 10


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(CSRC)))
def test_file_obeys(path):
    relative = path.relative_to(CSRC)
    room = relative.parts[0]
    assert room in MAY_INCLUDE, f"{relative}: {room} is no room"
    for own, name in includes(path):
        if not own:
            allowed = ONLY_IN.get(name)
            assert allowed is None or str(relative) in allowed, f"{relative} may not include <{name}>"
            continue
        target = Path(name)
        assert (CSRC / target).is_file(), f'{relative}: "{name}" is not a path from csrc/'
        if target.parts[0] in (room, "base"):
            continue
        assert target.parts[0] in MAY_INCLUDE[room], f"{relative} may not include {name}: the law of the rooms"
        rest = "/".join(target.parts[1:])
        assert rest in SEAMS[target.parts[0]], f"{relative}: {name} is private to {target.parts[0]}/"


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(CSRC)))
def test_file_is_small_and_allocates_through_base(path):
    relative = path.relative_to(CSRC)
    assert len(path.read_text().splitlines()) <= 600, f"{relative} is too long: split it"
    if relative.parts[0] != "base":
        found = ALLOCATION.search(code(path))
        assert found is None, f"{relative} calls {found.group(1)}(): use base/memory.h"
