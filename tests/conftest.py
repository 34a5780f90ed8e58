"""For all tests: Ctrl-C works, whoever started them; a run's output ends with the failures, after a count of the skips;
decides which tests may run at the same time if pytest-xdist has several workers."""

import signal
from collections import Counter
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
# One after the other, in one worker: tests that start several processes at once and check how and when they end.
ONE_BY_ONE = {
    "mpi",
    "crash",
    *(
        f"py/test_{name}.py"
        for name in ("fork", "folder_lock", "interrupts", "launch", "loader_life", "supervise", "train_here")
    ),
}
# They start first, since they take longest; the other files follow in their order, each in one worker.
LONGEST = ("py/test_emulated_gpu.py", "one by one")


def pytest_configure(config):
    """A script's background jobs (`make test &`, nohup, some CI) ignore SIGINT, and so would every process that a test
    starts and interrupts."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def group_of(item):
    path = item.path.relative_to(HERE).as_posix()
    if path == LONGEST[0]:
        return item.nodeid
    return "one by one" if path in ONE_BY_ONE or path.split("/")[0] in ONE_BY_ONE else path


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    if not config.pluginmanager.hasplugin("xdist"):
        return
    groups = {item: group_of(item) for item in items}
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: (LONGEST[0] not in groups[item], LONGEST[1] != groups[item]))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter):
    """Lists the skipped tests by reason, before pytest's own summary."""
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
