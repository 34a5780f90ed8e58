"""The numbers of random operations on images: they are part of what a seed means, so no two of them are equal."""

import re
from pathlib import Path

CSRC = Path(__file__).resolve().parents[2] / "csrc"
OF_CROPS = 63  # of the decoders that crop


def numbers_by_file():
    files = sorted((CSRC / "augment" / "ops").glob("*.h"))
    found = {path.name: set(map(int, re.findall(r"\.number = (\d+)", path.read_text()))) for path in files}
    return {name: numbers for name, numbers in found.items() if numbers}


def test_every_file_of_operations_has_its_own_number():
    found = numbers_by_file()
    every = [number for numbers in found.values() for number in numbers]
    assert len(found) >= 7 and all(len(numbers) == 1 for numbers in found.values())
    assert len(set(every)) == len(every), found
    assert all(0 < number < OF_CROPS for number in every)


def test_the_decoders_number_is_known():
    assert f"#define NUMBER {OF_CROPS}\n" in (CSRC / "loader" / "decoders" / "rectangle.c").read_text()
