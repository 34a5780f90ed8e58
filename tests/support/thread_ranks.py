"""Ranks as threads of this process over one memory segment: the fastest way to run a collective in a test."""

import inspect
import os
import threading

from cgxffcv import comm


def on_threads(size, function):
    """function(rank) on a thread for each rank; the results by rank, or the exceptions in their place. What is not an
    Exception, such as pytest's own failures, is raised."""
    results = [None] * size

    def work(rank):
        try:
            results[rank] = function(rank)
        except BaseException as error:
            results[rank] = error

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads), "a rank hangs"
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, Exception):
            raise result
    return results


def run_ranks(size, function, *, nodes=None, slot_bytes=None, timeout=60.0):
    """function(comm, rank) on each rank; the results by rank, or the exceptions in their place."""
    fd = comm.segment(size, slot_bytes)

    def work(rank):
        with comm.attach(fd, rank, size, timeout, nodes) as world:
            return function(world, rank)

    try:
        return on_threads(size, work)
    finally:
        os.close(fd)


def all_good(results):
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def on_ranks(size, **options):
    """Decorates a test of (world, rank, ...), which then runs on each of that many ranks; its other arguments are
    fixtures and parameters as usual."""

    def decorate(test):
        def on_each(**given):
            all_good(run_ranks(size, lambda world, rank: test(world, rank, **given), **options))

        on_each.__name__, on_each.__doc__, on_each.__module__ = test.__name__, test.__doc__, test.__module__
        on_each.__signature__ = inspect.Signature(list(inspect.signature(test).parameters.values())[2:])
        return on_each

    return decorate
