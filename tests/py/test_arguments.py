"""Errors of the C core's calls for arguments that contain others: sequences that change while they are read, items that
are not tuples, numbers out of range; see test_hostile_calls.py for all of them."""

import os

import _cgxffcv
import hostile_templates as good
import numpy as np
import pytest
from hostile_values import Evil, unaligned

from cgxffcv.comm import attach, segment

WRONG_ITEMS = {
    "rates": lambda: good.an_optimizer().step(["x", "y"]),
    "finite": lambda: good.an_optimizer().gradients_finite("xy"),
    "enabled": lambda: good.an_optimizer().step_scheduled(0, 5),
    "groups": lambda: _cgxffcv.Optimizer(["x"], good.tensors(), 1, "cpu"),
    "tensors": lambda: _cgxffcv.Optimizer([good.RULE], ["x"], 1, "cpu"),
    "nodes": lambda: _cgxffcv.Model(["x"], 3, **good.MODEL),
    "custom fields": lambda: _cgxffcv.BetonFile(__file__, ["x"]),
    "fields": lambda: _cgxffcv.Encoder(["x"], seed=0, threads=1, skip_bad=False),
    "spec": lambda: _cgxffcv.quantize_wire_bytes("x", 5),
    "layers": lambda: _cgxffcv.AllreducePlan(good.a_comm(), ["x"], **good.OPTIONS),
    "trainer's groups": lambda: good.a_trainer(groups=["x"]),
    "rules": lambda: good.a_trainer(groups=[good.trainer_settings()["groups"][0] | {"rule": "x"}]),
    "phases": lambda: good.a_trainer(phases=["x"]),
    "views": lambda: good.a_runner().evaluate_fed(good.feeding_loader(), good.BATCH, ["x"]),
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The folder of the good calls' files."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("call", WRONG_ITEMS.values(), ids=WRONG_ITEMS)
def test_items_of_a_wrong_type(call):
    with pytest.raises(TypeError, match="tuple|dict|sequence"):
        call()


def emptied(items, place):
    """A list that empties itself, and its first item if that is a dict, when item `place` of that is converted."""
    owner = list(items)
    first = dict(owner[0]) if isinstance(owner[0], dict) else list(owner[0])

    def act():
        owner.clear()
        first.clear()

    first[place] = Evil(first[place], act)
    owner[0] = first if isinstance(first, dict) else tuple(first)
    return owner


def test_a_list_that_is_emptied_counts_as_it_was():
    good.an_optimizer().step(emptied(good.RATES, 0))
    _cgxffcv.Optimizer(emptied([good.MUON, good.RULE], "iterations"), good.tensors(), 1, "cpu")
    model = _cgxffcv.Model(emptied(good.NODES, "kernel"), 3, **good.MODEL)
    assert len(model.layers) == len(good.a_model().layers)
    plan = _cgxffcv.AllreducePlan(good.a_comm(), emptied(good.LAYERS, "elems"), **good.OPTIONS)
    assert plan.elems == 107


def test_how_many_there_must_be():
    with pytest.raises(ValueError, match="there must be 1 to 16 views, not 17"):
        good.a_runner().evaluate_fed(good.feeding_loader(), good.BATCH, good.VIEWS[:1] * 17)
    with pytest.raises(ValueError, match="values of mean: 3 expected, not 2"):
        good.net_plan().evaluate(good.images(), mean=(1, 2), std=good.STD)


def prepare_with(**columns):
    [image, label] = good.OUTPUTS
    return _cgxffcv.Loader(good.the_file()).prepare([image | columns, label], np.arange(4), **good.PREPARE)


ENDLESS = {  # as many items as no memory has, though a system that promises more memory than it has begins to copy them
    "a batch's": lambda: _cgxffcv.augment_images(good.images(), np.arange(2), range(2**40), 0, 0, 0, False),
    "an image's": lambda: prepare_with(image=good.IMAGE | {"operations": range(2**40)}),
    "those before a move": lambda: prepare_with(move=good.MOVE | {"before": range(2**40)}),
    "a label's": lambda: prepare_with(labels=range(2**40)),
}


@pytest.mark.parametrize("call", ENDLESS.values(), ids=ENDLESS)
def test_long_ranges_are_not_copied(call):
    with pytest.raises(ValueError, match="there must be 0 to 1024 (label )?operations, not 1099511627776"):
        call()


@pytest.mark.parametrize("group, step", [(-1, 0), (1, 0), (10**6, 0), (-(2**31), 0), (0, -1), (0, 1000), (0, 2**62)])
def test_rates_of_groups_and_steps_that_are_none(group, step):
    with pytest.raises(IndexError, match="in a training with 1 groups and 1000 steps"):
        good.a_trainer().rate(group, step)


def test_a_communicator_that_is_none():
    for comm, reduction in ((5, "x"), (5, good.REDUCTION), (object(), "x")):
        with pytest.raises(TypeError):
            good.a_trainer(comm, reduction)
    world = good.a_comm()
    with pytest.raises(TypeError, match="reduction must be a dict"):
        good.a_trainer(world, "x")
    world.close()  # nothing uses it


def test_arrays_that_are_not_aligned():
    plan, images = good.net_plan(), np.zeros(good.images().size * 4 + 1, np.uint8)[1:].view(np.float32)
    with pytest.raises(ValueError, match="images is not aligned in memory"):
        plan.step(images.reshape(good.images().shape), good.labels())
    with pytest.raises(ValueError, match="labels is not aligned in memory"):
        plan.step(good.images(), unaligned(good.BATCH).view(np.int64), mean=good.MEAN, std=good.STD)


def test_a_range_of_rows_that_no_array_has():
    """A refused call leaves the writer as it was."""
    writer = good.column_writer()
    for end in (5, 2**40, 2**61, 2**62 + 3):
        with pytest.raises(ValueError, match="at least"):
            writer.append_arrays(0, good.columns(), 0, end)
    writer.append_arrays(0, good.columns(), 0, 4)
    assert writer.commit()[0] == 4


def test_an_object_that_is_closed_while_its_arguments_are_read():
    runner = good.a_runner()
    with pytest.raises(ValueError, match="this runner is closed"):
        runner.evaluate_fed(good.feeding_loader(), good.BATCH, [(Evil(0, runner.close), 0, False, 1.0)])


# ---- dicts that fill a C struct ----


def changed(members, **changes):
    return [{key: value for key, value in (members | changes).items() if value is not None}]


WRONG_MEMBERS = {
    "missing": (changed(good.RULE, decay=None), TypeError, "an optimizer group: decay is missing"),
    "unknown": (
        changed(good.RULE, speed=3),
        TypeError,
        "an optimizer group has no 'speed'; there are rule, momentum, decay",
    ),
    "of another kind": (changed(good.RULE, iterations=3), TypeError, "an optimizer group has no 'iterations'"),
    "no name": (
        changed(good.RULE, rule="adam"),
        ValueError,
        "an optimizer group: rule must be one of 'sgd', 'nesterov', 'muon', not 'adam'",
    ),
    "no number": (
        changed(good.RULE, momentum="x"),
        TypeError,
        "an optimizer group: momentum must be a number, not str",
    ),
    "not whole": (
        changed(good.MUON, iterations=2.0),
        TypeError,
        "an optimizer group: iterations must be a whole number, not float",
    ),
    "too large": (
        changed(good.MUON, iterations=2**31),
        ValueError,
        "an optimizer group: iterations must be in -2.31..2.31-1, not 2147483648",
    ),
}


@pytest.mark.parametrize("groups, error, words", WRONG_MEMBERS.values(), ids=WRONG_MEMBERS)
def test_members_that_do_not_fit(groups, error, words):
    with pytest.raises(error, match=words):
        _cgxffcv.Optimizer(groups, good.tensors(), 1, "cpu")


def test_a_message_names_the_one_of_many():
    nodes = [good.NODES[0] | {"kernel": "x"}]
    with pytest.raises(TypeError, match="node 'conv': kernel must be a whole number, not str"):
        _cgxffcv.Model(nodes, 3, **good.MODEL)
    with pytest.raises(ValueError, match="name must not contain a NUL character"):
        _cgxffcv.Model([good.NODES[0] | {"name": "co\0nv"}], 3, **good.MODEL)


# ---- numbers that would wrap ----

TOO_LARGE = 2**64
WRAPPED = {
    "value's sample": lambda number: good.open_file().value(0, number),
    "stored_image's sample": lambda number: good.open_file().stored_image(0, number),
    "sample_span's sample": lambda number: good.open_file().sample_span(number),
    "verify's first": lambda number: good.open_file().verify(number, 4, threads=1, decode_jpeg=True, max_problems=10),
    "encode's first_index": lambda number: good.new_encoder().encode(number, [good.row(0)]),
    "append's first_index": lambda number: good.new_writer().append(number, [good.row(0)]),
    "append_arrays' first_index": lambda number: good.column_writer().append_arrays(number, good.columns(), 1, 3),
    "initialise's seed": lambda number: good.a_model().initialise(number),
    "a plan's seed": lambda number: _cgxffcv.AllreducePlan(
        good.a_comm(), good.LAYERS, **good.OPTIONS | {"seed": number}
    ),
    "quantize's quad": lambda number: _cgxffcv.quantize(
        np.ones(100, np.float32), "float32", good.SPEC, good.RANDOM | {"quad": number}, 1, good.wire()
    ),
    "reduction's seed": lambda number: good.a_trainer(good.a_comm(), good.REDUCTION | {"seed": number}),
    "begin's first_batch": lambda number: good.a_loader().begin(0, number, False, False, None),
    "reseed's seed": lambda number: good.a_loader().reseed(number),
    "batches' samples": lambda number: good.a_loader().batches(number),
    "prepare's seed": lambda number: good.a_loader(seed=number),
    "prepare's batch_size": lambda number: good.a_loader(batch_size=number),
    "Encoder's seed": lambda number: _cgxffcv.Encoder(good.FIELDS, seed=number, threads=1, skip_bad=True),
    "Writer's page_size": lambda number: _cgxffcv.Writer("x", good.FIELDS, **good.WRITER | {"page_size": number}),
}


@pytest.mark.parametrize("number", [-1, -TOO_LARGE, TOO_LARGE, TOO_LARGE + 1, 10**40])
@pytest.mark.parametrize("name", WRAPPED)
def test_numbers_are_not_wrapped(name, number):
    with pytest.raises(ValueError, match=f"{name.split()[-1]} must be in 0..2.64-1, not {number}$"):
        WRAPPED[name](number)
    with pytest.raises(TypeError, match="must be a whole number, not float"):
        WRAPPED[name](1.0)


@pytest.mark.parametrize("number", [-1, 2**32, 2**64])
def test_epochs_are_not_wrapped(number):
    loader = good.a_loader()
    for call in (
        lambda: loader.begin(number, 0, False, False, None),
        lambda: loader.gather(np.arange(3), number, False),
        lambda: loader.order(number),
        lambda: _cgxffcv.loader_shuffled(np.arange(9), 3, number),
    ):
        with pytest.raises(ValueError, match=f"epoch must be in 0..2.32-1, not {number}"):
            call()


def test_colors_of_a_split():
    fd = segment(1)
    with attach(fd, 0, 1) as one:
        for arguments, error, text in (
            ((None,), TypeError, "color must be a whole number, not NoneType"),
            ((1.5,), TypeError, "color must be a whole number, not float"),
            ((2**40,), ValueError, "color must be in"),
            ((0, "a"), TypeError, "key must be a whole number, not str"),
            ((0, -(2**40)), ValueError, "key must be in"),
        ):
            with pytest.raises(error, match=text):
                one.split(*arguments)
        assert one.split(-1) is None and one.split(3, -1).size == 1
    os.close(fd)


@pytest.mark.parametrize("seconds", [10**400, -(10**400)])
def test_seconds_that_no_float_holds(seconds):
    with pytest.raises(ValueError, match="timeout must be a number of seconds above 0 that a float can hold, or None"):
        _cgxffcv.comm_world(seconds)
