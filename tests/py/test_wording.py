"""Counts and values as messages show them."""

import pytest

from cgxffcv.beton import VerifyReport
from cgxffcv.wording import LONGEST, brief, counted
from cgxffcv.writer import WriteReport


@pytest.mark.parametrize(
    "number, noun, expected",
    [
        (1, "problem", "1 problem"),
        (0, "problem", "0 problems"),
        (2, "process", "2 processes"),
        (1, "process", "1 process"),
        (1.0, "epoch", "1 epoch"),
        (2.5, "epoch", "2.5 epochs"),
        (12345, "image", "12,345 images"),
        (3, "JPEG image", "3 JPEG images"),
    ],
)
def test_counts(number, noun, expected):
    assert counted(number, noun) == expected


def test_reports_count_one_as_one():
    text = str(VerifyReport("x.beton", 1, 1, 5, 1, num_problems=1))
    assert "1 problem\n" in text and "1 sample, 1 region," in text and "1 JPEG image decoded" in text
    assert "x.beton: 1 sample, 5 B" in str(WriteReport("x.beton", 1, 5, 8, 0.1))


def test_no_value_takes_more_than_a_line():
    for value in ("x" * 5000, "\x1b[31m" * 99, 10**5000, [["a" * 99] * 16] * 16, "\udce4", b"\0" * 999):
        assert len(brief(value)) <= LONGEST and brief(value).isprintable()
    assert brief("l\u00e4ufe") == "'l\u00e4ufe'" and brief(0.5) == "0.5"
