"""For all tests: Ctrl-C works, whoever started them."""

import signal


def pytest_configure(config):
    """A script's background jobs (`make test &`, nohup, some CI) ignore SIGINT, and so would every process that a test
    starts and interrupts."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
