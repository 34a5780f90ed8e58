"""A child of test_hostile_calls.py: hostile_calls.py GROUP makes every call of that group of _cgxffcv with one
argument, or one item inside one, replaced by everything that does not belong there. It exits with 0, or prints which
calls ended wrongly; a crash is itself a finding: the file `call` names the call under way."""

import contextlib
import copy
import faulthandler
import gc
import os
import pickle
import random
import signal
import sys
import threading
import weakref
from functools import partial

import _cgxffcv
from hostile_templates import FUNCTIONS, MAKERS, TYPES, refuse
from hostile_values import Evil, fresh, hostile_values, lists_in, places, put, taken

LIMIT = int(os.environ.get("HOSTILE_CALLS", "150"))  # calls of each template, chosen at random if there are more
SECONDS = 120  # for one call; nothing here comes near it
# What a call may end with. SystemError and AssertionError are not among them.
FINE = (
    TypeError,
    ValueError,
    OverflowError,
    LookupError,
    BufferError,
    MemoryError,
    OSError,
    RuntimeError,
    ImportError,
    AttributeError,
)


# ---- calls ----


class Walk:
    def __init__(self, group):
        self.random, self.found = random.Random(group), []
        self.file = os.open("call", os.O_CREAT | os.O_WRONLY)

    def say(self, text):
        """Writes it down before the call, so that it can be read after a crash."""
        os.ftruncate(self.file, 0)
        os.pwrite(self.file, text.encode("utf-8", "backslashreplace")[:2000], 0)

    def call(self, name, function, args, keywords):
        try:
            self.say(f"{name} {describe(args)} {describe(keywords)}")
            signal.alarm(SECONDS)
            function(*args, **keywords)
        except FINE:
            pass
        except BaseException as error:
            self.found.append(f"{name}: {type(error).__name__}: {error} for {describe(args)} {describe(keywords)}")
        finally:
            signal.alarm(0)

    def template(self, name, make):
        """make() gives (function, args, keywords, what may be done while the arguments are converted)."""
        function, args, keywords, acts = make()
        missing = (_cgxffcv.NotBuiltError,) if _cgxffcv.devices() else (_cgxffcv.NotBuiltError, _cgxffcv.CudaError)
        with contextlib.suppress(*missing):
            function(*args, **keywords)  # the template itself works: otherwise everything stops at the first check
        both = {"args": tuple(args), "keywords": keywords}
        cases = [
            (path, kind)
            for path in places(both)
            if len(path) > 1
            for kind in [*range(len(hostile_values())), *acts, "clear"]
        ]
        cases += [(("args",), kind) for kind in ("fewer", "more")]
        if len(cases) > LIMIT:
            cases = self.random.sample(cases, LIMIT)
        for path, kind in cases:
            function, args, keywords, acts = make()
            both = {"args": tuple(args), "keywords": keywords}
            if kind in ("fewer", "more"):
                both["args"] = both["args"][:-1] if kind == "fewer" else (*both["args"], None)
            elif isinstance(kind, int):
                both = put(both, path, hostile_values()[kind])
            elif kind == "clear":
                both = self.clearing(both, path)
            else:
                both = put(
                    both, path, Evil(taken(both, path), acts[kind] if kind == "refuse" else suppressed(acts[kind]))
                )
            self.call(name, function, both["args"], both["keywords"])

    def clearing(self, both, path):
        """An item that empties all lists on the way to it when it is looked at."""
        both = fresh(both, self.random.choice((list, None)))
        both["args"] = tuple(both["args"])
        owners = []

        def act():
            for owner in owners:
                owner.clear()
            gc.collect()
            self.junk = [bytearray(48 + 16 * (i % 20)) for i in range(500)]

        both = put(both, path, Evil(taken(both, path), act))
        owners += list(lists_in(both))
        return both


def describe(value):
    """Each item by its first characters, so that the hostile one among them is to be seen."""
    if isinstance(value, tuple):
        return f"({', '.join(map(describe, value))})"
    with contextlib.suppress(Exception):
        return " ".join(ascii(value)[:300].split())
    return f"<{type(value).__name__}>"


def suppressed(act):
    def run():
        with contextlib.suppress(*FINE):
            act()

    return run


# ---- what is done to all of them ----


def members(kind):
    """Names of methods and of attributes."""
    found = {
        name: value
        for name, value in vars(kind).items()
        if not name.startswith("__") or name in ("__enter__", "__exit__")
    }
    methods = [name for name, value in found.items() if callable(value)]
    return methods, [name for name in found if name not in methods]


def blunt(walk, name, call):
    """One, two, three hostile arguments, and names that no function has."""
    for value in hostile_values():
        for args in ((value,), (value, value), (value, value, value)):
            walk.call(name, call, args, {})
        walk.call(name, call, (), {"data": value, "nonsense": value})
    walk.call(name, call, (), {})


def attributes(walk, name, thing, names):
    for attribute in [*names, "no_such_attribute", "__dict__", "__class__", "__doc__"]:
        walk.call(f"get {name}.{attribute}", getattr, (thing, attribute), {})
        for value in [*hostile_values(), Evil(1, gc.collect), Evil(1, refuse)]:
            walk.call(f"set {name}.{attribute}", setattr, (thing, attribute, value), {})
        walk.call(f"delete {name}.{attribute}", delattr, (thing, attribute), {})


def births(walk, name, kind):
    """Objects that were never properly initialised."""
    for make in (kind, kind.__new__):
        args = () if make is kind else (kind,)
        walk.call(f"birth of {name}", make, args, {})
        for value in hostile_values():
            walk.call(f"birth of {name}", make, (*args, value), {})
    walk.call(f"birth of {name}", object.__new__, (kind,), {})
    walk.call(f"subclass of {name}", type, ("Sub", (kind,), {}), {})
    walk.call(f"change of {name}", setattr, (kind, "close", None), {})


def strangers(walk, name, kind, methods):
    """Methods and attributes of another object."""
    for method_name in methods:
        walk.call(f"{name}.{method_name} of a stranger", vars(kind)[method_name], (object(),), {})
        walk.call(f"{name}.{method_name} of a type", vars(kind)[method_name], (kind,), {})


def as_any_object(walk, name, thing):
    copies = copy.copy, copy.deepcopy, pickle.dumps, weakref.ref
    for function in (repr, hash, dir, bytes, iter, len, gc.get_referents, *copies):
        walk.call(f"{function.__name__} of {name}", function, (thing,), {})
    walk.call(f"init of {name}", thing.__init__, (1,), {})
    walk.call(f"comparison of {name}", thing.__eq__, (thing,), {})


def closed(walk, name, make, methods, names):
    """Objects that are closed twice, and used afterwards."""
    ends = [end for end in ("close", "abort", "commit", "__exit__") if end in methods]
    for end in ends:
        thing = make()
        args = (None, None, None) if end == "__exit__" else ()
        walk.call(f"{name}.{end}", getattr(thing, end), args, {})
        walk.call(f"{name}.{end} again", getattr(thing, end), args, {})
        for method_name in methods:
            template = TYPES[name].get(method_name)
            _, args, keywords, _ = template() if template else (None, (), {}, None)
            walk.call(f"{name}.{method_name} after {end}", getattr(thing, method_name), args, keywords)
        for attribute in names:
            walk.call(f"{name}.{attribute} after {end}", getattr, (thing, attribute), {})
        as_any_object(walk, name, thing)


def crowd(walk, name, make, methods, names):
    """Threads that use one object at once, and close it."""
    thing = make()
    calls = [partial(getattr, thing, attribute) for attribute in names]
    for method_name in methods:
        template = TYPES[name].get(method_name)
        if template and method_name not in ("close", "abort", "commit", "__exit__"):
            _, args, keywords, _ = template()
            calls.append(partial(getattr(thing, method_name), *args, **keywords))
    last = [getattr(thing, end) for end in ("close", "abort") if end in methods][:1]
    bad = []

    def work(seed):
        order = random.Random(seed)
        for i in range(60):
            try:
                (order.choice(calls) if not last or i != 45 else last[0])()
            except FINE:
                pass
            except BaseException as error:
                bad.append(f"{name} in threads: {type(error).__name__}: {error}")

    walk.say(f"{name} in threads")
    signal.alarm(SECONDS)
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)] if calls else []
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    signal.alarm(0)
    walk.found += bad


def walk_type(walk, name):
    kind = getattr(_cgxffcv, name)
    methods, names = members(kind)
    missing = set(methods) - set(TYPES[name])
    assert not missing, f"hostile_templates.py has no good call of {sorted(missing)} of {name}"
    births(walk, name, kind)
    strangers(walk, name, kind, methods)
    for template_name, make in TYPES[name].items():
        if make is not None:
            walk.template(f"{name}.{template_name}".rstrip("."), make)
    if name not in MAKERS:
        return
    make = MAKERS[name]
    thing = make()
    as_any_object(walk, name, thing)
    attributes(walk, name, thing, names)
    for method_name in methods:
        blunt(walk, f"{name}.{method_name}", getattr(make(), method_name))
    closed(walk, name, make, methods, names)
    crowd(walk, name, make, methods, names)


def segments(walk):
    """Files that are not segments, and segments for other ranks."""
    for value in hostile_values():
        for args in (
            (value, 0, 1, 5.0),
            (9, value, 1, 5.0),
            (9, 0, value, 5.0),
            (9, 0, 1, value),
            (9, 0, 1, 5.0, value),
        ):
            with contextlib.suppress(*FINE):
                fd = _cgxffcv.comm_segment(1)
                walk.call("comm_attach", _cgxffcv.comm_attach, tuple(fd if arg == 9 else arg for arg in args), {})
                os.close(fd)


def walk_functions(walk):
    names = {name for name, value in vars(_cgxffcv).items() if callable(value) and not isinstance(value, type)}
    names = {name for name in names if not name.startswith("__")}
    assert names == set(FUNCTIONS), names ^ set(FUNCTIONS)
    for name, make in FUNCTIONS.items():
        if make is not None:
            walk.template(name, make)
    for name in sorted(names - {"comm_segment"}):
        blunt(walk, name, getattr(_cgxffcv, name))
    segments(walk)


def walk_errors(walk):
    """The exceptions, with hostile arguments."""
    for name in ERRORS:
        blunt(walk, name, getattr(_cgxffcv, name))
        attributes(walk, name, getattr(_cgxffcv, name)("x"), ["path", "rank"])


ERRORS = [name for name, value in vars(_cgxffcv).items() if isinstance(value, type) and issubclass(value, Exception)]
GROUPS = [*TYPES, "functions", "errors"]


def main():
    faulthandler.enable()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    faulthandler.register(signal.SIGALRM, chain=True)  # a call that hangs shows where, and ends the process
    types = {name for name, value in vars(_cgxffcv).items() if isinstance(value, type)} - set(ERRORS)
    assert types == set(TYPES), types ^ set(TYPES)
    walk = Walk(sys.argv[1])
    for group, function in {"functions": walk_functions, "errors": walk_errors}.items():
        if sys.argv[1] == group:
            function(walk)
    if sys.argv[1] in TYPES:
        walk_type(walk, sys.argv[1])
    print("\n".join(walk.found[:20]))
    sys.exit(len(walk.found) > 0)


if __name__ == "__main__":
    main()
