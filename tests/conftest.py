"""For all tests: Ctrl-C works, whoever started them; a run ends with its failures, after a count of the skips."""

import signal
from collections import Counter

import pytest


def pytest_configure(config):
    """A script's background jobs (`make test &`, nohup, some CI) ignore SIGINT, and so would every process that a test
    starts and interrupts."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter):
    """Skipped tests by reason, before all that pytest says itself."""
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple)
    )
    if reasons:
        terminalreporter.section("skipped")
    for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0])):
        terminalreporter.write_line(f"{count:5d}  {reason}")
    return (yield)
