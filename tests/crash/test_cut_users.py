"""Files that are truncated after the Loader, `verify`, `info` or `merge` has opened them: BetonError or, for the
commands, a message; never a signal, and never data that are not the file's. (test_cut_files.py tests the Reader.)"""

import pytest
from checkout import run_python

# Each user runs in a separate process, so that a signal is noticed; Reader and Loader truncate their file once it is
# open.
PROGRAM = """
import contextlib, io, os, sys
import numpy as np, _cgxffcv
from cgxffcv import DatasetWriter, Loader, OrderOption, Reader, beton
from cgxffcv.app import cli
from cgxffcv.fields import BytesField, IntField, JSONField, NDArrayField, RGBImageField

path, cut, how = sys.argv[1] + "/x.beton", int(sys.argv[2]), sys.argv[3]
image = np.full((40, 30, 3), 7, np.uint8)
fields = {"image": RGBImageField(), "n": IntField(), "a": NDArrayField("int32", (300,))}
if how in ("verify", "info", "merge"):  # the Loader hands out neither
    fields |= {"b": BytesField(), "j": JSONField()}
sample = (image, 1, np.ones(300, np.int32), b"abc" * 900, {"k": [1, 2]})[: len(fields)]
DatasetWriter(path, fields, num_workers=1, durable=False, progress=False).from_iterable([sample] * 6)

def cutting(function):
    def inner(self, *arguments, **options):
        result = function(self, *arguments, **options)
        os.truncate(path, cut)
        return result
    return inner

def loader(**options):
    made = Loader(path, 2, num_workers=2, seed=1, **options)
    os.truncate(path, cut)
    return made

def whole(batches):
    for image, label, array in batches:
        assert (np.asarray(image) == 7).all() and (np.asarray(label) == 1).all() and (np.asarray(array) == 1).all()

def changed(**settings):
    made = loader()
    for name, value in settings.items():
        setattr(made, name, value)
    whole(made)

def iterate_again():
    made = Loader(path, 2, num_workers=2)
    whole(made)
    os.truncate(path, cut)
    whole(made)

def command(*words):
    Reader.__init__ = cutting(Reader.__init__)
    text = io.StringIO()
    with contextlib.redirect_stderr(text), contextlib.redirect_stdout(text):
        code = cli.run([*words, path])
    return code, text.getvalue()

def verify_command():
    code, text = command("verify")
    assert code != 0 and "x.beton" in text, (code, text)

def info_command():
    code, text = command("info")
    assert code == 0 or "x.beton" in text, (code, text)

def verify():
    Reader.__init__ = cutting(Reader.__init__)
    assert not beton.verify(path, num_workers=2).ok

def merge():
    Reader.__init__ = cutting(Reader.__init__)
    try:
        beton.merge(path + ".all", [path])
    finally:
        assert not os.path.exists(path + ".all")

TOLD = {  # what is said without the file's data
    "len": lambda: len(loader()),
    "repr": lambda: repr(loader()),
    "stats": lambda: loader().stats(),
    "state": lambda: loader().state_dict(),
    "close": lambda: loader().close(),
    "info_command": info_command,
    "verify_command": verify_command,  # a report with the problem and exit code 1, or BetonError
}
REFUSED = {
    "iterate": lambda: whole(loader()),
    "random": lambda: whole(loader(order=OrderOption.RANDOM)),
    "quasi": lambda: whole(loader(order=OrderOption.QUASI_RANDOM)),
    "uncached": lambda: whole(loader(os_cache=False)),
    "resident": lambda: whole(loader(resident=True)),
    "again": iterate_again,
    "get_batch": lambda: whole([loader().get_batch([0, 3])]),
    "filter": lambda: whole(loader().filter("n", lambda value: True)),
    "reader": lambda: loader().reader[2],
    "setting": lambda: changed(batch_size=3),
    "verify": verify,
    "merge": merge,
}

try:
    (TOLD | REFUSED)[how]()
except _cgxffcv.BetonError as error:
    assert path in str(error), error
    print("refused")
else:
    assert how in TOLD or how == "verify", "data of a file that has lost it"
    print("told")
"""
USERS = (
    "len repr stats state close info_command verify_command iterate random quasi uncached resident again get_batch "
    "filter reader setting verify merge"
).split()


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("cut", [0, 4096 + 1])
def test_a_file_cut_after_it_was_opened(tmp_path, user, cut):
    assert run_python("-c", PROGRAM, tmp_path, cut, user).stdout in ("refused\n", "told\n")
