"""A good call of every callable of _cgxffcv, for test_hostile_calls.py to spoil."""

import gc
import itertools
import os

import _cgxffcv
import numpy as np
from foreign_arrays import address_of
from hostile_values import Refusal

from cgxffcv.fields import BytesField, FloatField, IntField, NDArrayField, RGBImageField
from cgxffcv.nn.describe import Conv, Description, Head, Norm
from cgxffcv.pipeline.compile import core_column, core_operation
from cgxffcv.train.compression import Compression
from cgxffcv.train.optim import Muon, Sgd
from cgxffcv.train.plan import Group, Phase
from cgxffcv.transforms import RandomCrop, RandomHorizontalFlip


def refuse():
    raise Refusal("by itself")


NODES = Description(
    "net", (Conv("conv", 8, block=1), Norm("norm", "relu", 2, "before", block=1), Head("head", 4, 0.5, block=2))
).core()
MODEL = {"backend": "cpu", "precision": "float32", "convolution": "auto", "threads": 1, "deterministic": False}
RULE = Sgd(0.9, 1e-4).group()
MUON = Muon(0.9).group()
MEAN, STD = (120.0, 121.0, 122.0), (50.0, 51.0, 52.0)
VIEWS = [(0, 0, False, 1.0), (1, -1, True, 0.5)]
BATCH, SIDE, CLASSES = 4, 8, 4
SPEC = {
    "bits": 4,
    "bucket_size": 64,
    "dtype": "float32",
    "codec": "maxmin",
    "rounding": "nearest",
    "half_metadata": False,
    "spikes": None,
    "scale": "auto",
}
RANDOM = {"seed": 1, "call": 2, "rank": 3, "quad": 4}
OPTIONS = SPEC | {
    "op": "average",
    "layer_min_size": 16,
    "spikes": 0,
    "algorithm": "one_shot",
    "error_feedback": True,
    "seed": 1,
    "threads": 1,
    "timeout": 5.0,
    "costs": None,
}
LAYERS = [
    {"name": "a", "shape": "100", "elems": 100, "dims": 1, "bits": 4, "bucket_size": 64},
    {"name": None, "shape": None, "elems": 7, "dims": 2, "bits": 32, "bucket_size": 64},
]
FIELDS = [
    field.describe(name)
    for name, field in {
        "image": RGBImageField(),
        "label": IntField(),
        "array": NDArrayField("float32", 2),
        "bytes": BytesField(),
        "float": FloatField(),
    }.items()
]
WRITER = {
    "page_size": 1 << 16,
    "small_pages": True,
    "checksums": True,
    "durable": False,
    "expected_samples": 4,
    "threads": 1,
    "seed": 0,
    "skip_bad": True,
}
IMAGE = {
    "operations": (
        core_operation(RandomHorizontalFlip(), 0),
        core_operation(RandomCrop(8, padding=1), 0),
    ),
    "normalize": {"mean": MEAN, "std": STD, "type": "float32"},
    "type": "float32",
    "layout": "chw",
}
MOVE = {
    "before": IMAGE["operations"][:1],
    "process_on_device": True,
    "only_if_processed": True,
}  # nothing moves without a GPU
OUTPUTS = [core_column("image", "image", image=IMAGE, move=MOVE), core_column("label", "int")]
PREPARE = {
    "batch_size": 2,
    "order": "random",
    "window_pages": 2,
    "seed": 3,
    "workers": 1,
    "batches_ahead": 2,
    "world_size": 1,
    "rank": 0,
    "drop_last": False,
    "resident": False,
    "read_ahead": False,
    "blank_damaged": False,
    "skip_damaged": False,
    "page_locked": None,
    "device": 0,
}


def row(i):
    return (np.full((SIDE, SIDE, 3), i, np.uint8), i % CLASSES, np.zeros(2, np.float32).tobytes(), b"bytes", 0.5)


def the_file():
    if not os.path.exists("good.beton"):
        writer = _cgxffcv.Writer("good.beton", FIELDS, **WRITER)
        writer.append(0, [row(i) for i in range(6)])
        writer.commit()
    return "good.beton"


def a_loader(**changes):
    loader = _cgxffcv.Loader(the_file())
    loader.prepare(OUTPUTS, np.arange(4), **PREPARE | changes)
    return loader


def a_comm():
    fd = _cgxffcv.comm_segment(1)
    try:
        return _cgxffcv.comm_attach(fd, 0, 1, 5.0)
    finally:
        os.close(fd)


def a_model():
    return _cgxffcv.Model(NODES, 3, **MODEL)


REDUCTION = Compression(4, 64, 16, error_feedback=True, layers={"head.weight": 8}).core(1, 1)


def trainer_settings():
    group = Group("all", Sgd(0.9, 1e-4), 0.1, ((0, 1.0), (5.0, 0.5))).core()
    return {
        "groups": [group],
        "phases": [vars(Phase(0, SIDE, 0))],
        "steps": 1000,
        "side": SIDE,
        "batch": BATCH,
        "test_batch": 8,
        "mean": MEAN,
        "std": STD,
        "label_smoothing": 0.1,
        "loss": "mean",
        "project": "always",
        "lookahead_every": 2,
        "lookahead_base": 0.5,
    }


def a_trainer(comm=None, reduction=REDUCTION, **changes):
    return _cgxffcv.Trainer(a_model(), comm, reduction, **trainer_settings() | changes)


def images(dtype=np.uint8):
    return np.zeros((BATCH, SIDE, SIDE, 3), dtype)


def labels():
    return np.arange(BATCH) % CLASSES


def tensors():
    return [
        (np.ones((8, 6), np.float32), np.ones((8, 6), np.float32), 0),
        (np.ones(5, np.float32), np.ones(5, np.float32), 1),
    ]


def an_optimizer():
    return _cgxffcv.Optimizer([MUON, RULE], tensors(), 1, "cpu")


RATES = [(0.1, True, False), (0.1, True, True)]
COUNTER = itertools.count()


def plain(function, *args, **keywords):
    return lambda: (function, args, keywords, {"collect": gc.collect, "refuse": refuse})


def method(make, name, *args, close="close", **keywords):
    """A method of a new object; while its arguments are converted the object is closed, or called again."""

    def build():
        thing = make()
        call = getattr(thing, name)
        acts = {"again": lambda: call(*args, **keywords), "refuse": refuse, "collect": gc.collect}
        if hasattr(thing, close):
            acts["close"] = getattr(thing, close)
        return call, args, keywords, acts

    return build


def new_writer():
    return _cgxffcv.Writer(f"new{next(COUNTER) % 8}.beton", FIELDS, **WRITER)


def one_comm(function, *args):
    comm = a_comm()
    return function, (comm, *args), {}, {"close": comm.close}


def plan_of_comm():
    comm = a_comm()
    return _cgxffcv.AllreducePlan, (comm, LAYERS, -1, False), OPTIONS, {"close": comm.close, "collect": gc.collect}


def a_tensor(elems=100):
    return _cgxffcv.tensor_of_buffer(np.ones(elems, np.float32)).copy()


def an_address():
    """Where there are GPUs, only an address in the memory of one is accepted."""
    held = a_tensor(6).copy(0) if _cgxffcv.devices() else None
    address = 4096 if held is None else address_of(held)
    return _cgxffcv.tensor_of_address, (held, address, (2, 3), (12, 4), "float32", True), {}, {"collect": gc.collect}


def a_run():
    return _cgxffcv.allreduce_begin([a_tensor(), a_tensor(7)])


def trial_of_comm():
    comm = a_comm()
    options = OPTIONS | {"error_feedback": False}  # a residual of 2^32 elements would take too long
    return _cgxffcv.AllreduceTrial, (comm, "host", 107), options, {"close": comm.close, "collect": gc.collect}


def trainer_of_comm():
    comm = a_comm()
    return _cgxffcv.Trainer, (a_model(), comm, REDUCTION), trainer_settings(), {"close": comm.close, "refuse": refuse}


def a_plan_of_comm():
    function, args, keywords, _ = plan_of_comm()
    return function(*args, **keywords)


def a_staged_plan(rank=0):
    return _cgxffcv.AllreducePlan(_cgxffcv.comm_apart(rank, [0, 1]), LAYERS, **OPTIONS | {"algorithm": "sra"})


def stage(name):
    """The step of that name, with messages that fit."""

    def build():
        buffer = np.ones(107, np.float32)
        _, sizes, each, result = a_staged_plan().stage_messages("across")
        messages, theirs, results = (np.zeros(n, np.uint8) for n in (sum(sizes), each, result))
        a_staged_plan(1).stage_encode("across", buffer, theirs)
        args = {
            "stage_messages": ("across",),
            "stage_encode": ("across", buffer, messages),
            "stage_reduce": ("across", buffer, theirs, results),
            "stage_finish": (buffer, np.zeros(2 * result, np.uint8)),
        }
        return method(a_staged_plan, name, *args[name])()

    return build


def a_trial_of_comm():
    function, args, keywords, _ = trial_of_comm()
    return function(*args, **keywords)


def net_plan(**options):
    return _cgxffcv.Plan(a_model(), BATCH, SIDE, SIDE, **options)


def headless_plan():
    """A plan without a head that has run forward."""
    model = _cgxffcv.Model(NODES[:2], 3, **MODEL)
    plan = _cgxffcv.Plan(model, BATCH, SIDE, SIDE, keep_all=True)
    plan.forward(images(), MEAN, STD)
    return plan


def stepped_plan():
    plan = net_plan(keep_all=True)
    plan.step(images(), labels(), mean=MEAN, std=STD)
    return plan


def feeding_loader():
    """A loader of a trainer's batches, under way."""
    loader = _cgxffcv.Loader(the_file())
    outputs = [core_column("image", "image"), core_column("label", "int")]
    loader.prepare(outputs, np.arange(4), **PREPARE | {"batch_size": BATCH})
    loader.begin(0, 0, False, False, None)
    return loader


def a_runner():
    return _cgxffcv.Runner(a_trainer(), (), 7, False)


def of_runner(name, *args):
    """A method that takes a loader first."""
    return lambda: method(a_runner, name, feeding_loader(), *args)()


def begun_loader():
    loader = a_loader()
    loader.begin(0, 0, False, False, None)
    return loader


def new_encoder():
    return _cgxffcv.Encoder(FIELDS, seed=0, threads=1, skip_bad=True)


def open_loader():
    return _cgxffcv.Loader(the_file())


def open_file():
    return _cgxffcv.BetonFile(the_file())


def packed():
    return _cgxffcv.Encoder(FIELDS, seed=0, threads=1, skip_bad=True).encode(0, [row(0)])[0]


def wire():
    return np.zeros(_cgxffcv.quantize_wire_bytes(SPEC, 100), np.uint8)


def image():
    return np.arange(20 * 16 * 3, dtype=np.uint8).reshape(20, 16, 3)


def columns():
    return (np.zeros((4, SIDE, SIDE, 3), np.uint8), np.arange(4), np.zeros((4, 2), np.float32), np.zeros(4))


def column_writer():
    return _cgxffcv.Writer("columns.beton", [field for field in FIELDS if field["kind"] != "bytes"], **WRITER)


CROP = {"operation": "RandomCrop", "draws": 1, "normalized": False, "values": ((8, 9), 2, (1.0, 2.0, 3.0))}

# None: calls that need no template, or can have none without a device, a second rank, or a state of the object: `blunt`
# makes them.
FUNCTIONS = {
    "build_info": plain(_cgxffcv.build_info),
    "cudnn_version": plain(_cgxffcv.cudnn_version),
    "mpi_library": plain(_cgxffcv.mpi_library, open=False),
    "nccl_version": plain(_cgxffcv.nccl_version),
    "devices": plain(_cgxffcv.devices),
    "why_no_device": plain(_cgxffcv.why_no_device),
    "device_free_memory": None,
    "select_device": None,
    "jpeg_header": plain(_cgxffcv.jpeg_header, _cgxffcv.jpeg_encode(image())),
    "jpeg_decode": plain(_cgxffcv.jpeg_decode, _cgxffcv.jpeg_encode(image()), fast=True, region=(1, 2, 3, 4), shrink=2),
    "jpeg_encode": plain(_cgxffcv.jpeg_encode, image(), quality=90),
    "max_image_pixels": plain(_cgxffcv.max_image_pixels),
    "set_max_image_pixels": plain(_cgxffcv.set_max_image_pixels, 1 << 20),
    "write_file": plain(_cgxffcv.write_file, "pieces", [b"abc", bytearray(b"de"), np.zeros(3)], durable=False),
    "resize_area": plain(_cgxffcv.resize_area, image(), 7, 9),
    "image_operations": plain(_cgxffcv.image_operations),
    "check_operation": plain(_cgxffcv.check_operation, "RandomCrop", ((8, 9), 2, (1.0, 2.0, 3.0))),
    "augment_images": plain(
        _cgxffcv.augment_images, np.zeros((2, 9, 9, 3), np.uint8), np.arange(2), (CROP, CROP), 1, 3, 2, False
    ),
    "loader_shuffled": plain(_cgxffcv.loader_shuffled, np.arange(9), 1, 2),
    "loader_share": plain(_cgxffcv.loader_share, np.arange(9), 2, 2, 1, False),
    "quantize": plain(_cgxffcv.quantize, np.ones(100, np.float32), "float32", SPEC, RANDOM, 2, wire()),
    "dequantize": plain(
        _cgxffcv.dequantize, wire(), SPEC, RANDOM, np.ones(100, np.float32), "float32", np.ones(100, np.float32), 2.0, 2
    ),
    "quantize_on_device": None,
    "quantize_wire_bytes": plain(_cgxffcv.quantize_wire_bytes, SPEC, 100),
    "quantize_kernels": plain(_cgxffcv.quantize_kernels, "scalar"),
    "patch_moments": plain(_cgxffcv.patch_moments, np.ones((2, 3, 8, 8), np.float32), threads=2),
    "whitening_filters": plain(_cgxffcv.whitening_filters, np.eye(12), epsilon=0.1),
    "tensor_of_buffer": plain(_cgxffcv.tensor_of_buffer, np.ones((2, 3), np.uint16), "bfloat16"),
    "tensor_of_dlpack": lambda: (_cgxffcv.tensor_of_dlpack, (a_tensor().__dlpack__(),), {}, {"collect": gc.collect}),
    "tensor_of_address": an_address,
    "device_order": plain(_cgxffcv.device_order, 0, 0, 1),
    "loader_batch_read": None,
    "allreduce_begin": plain(_cgxffcv.allreduce_begin, [a_tensor(), a_tensor()], 0),
    "allreduce_compare_calls": lambda: one_comm(_cgxffcv.allreduce_compare_calls, "this; and that", 1, 2, 5.0),
    "allreduce_measure": None,
    "allreduce_choose_widths": plain(
        _cgxffcv.allreduce_choose_widths, np.ones((3, 2)), np.ones((3, 2), np.uint64), 4.0
    ),
    "allreduce_check_replicas": lambda: one_comm(_cgxffcv.allreduce_check_replicas, np.ones(8, np.float32)),
    "comm_world": plain(_cgxffcv.comm_world, 5.0, 1, slot_bytes=65536, stall=2.0),
    "comm_segment": None,
    "comm_attach": None,
    "comm_apart": plain(_cgxffcv.comm_apart, 0, [0, 1, 0]),
    "comm_abort_all": plain(_cgxffcv.comm_abort_all, "for fun"),
    "comm_finalize": None,
}
TYPES = {
    "BetonFile": {
        "": lambda: (
            _cgxffcv.BetonFile,
            (
                the_file(),
                [{"name": "image", "record_bytes": 16, "record_alignment": 8, "pointer_offset": 0, "size_offset": 8}],
            ),
            {},
            {"refuse": refuse},
        ),
        "value": method(open_file, "value", 0, 1, view=True, fast=True),
        "column": method(open_file, "column", 1),
        "sample_span": method(open_file, "sample_span", 2),
        "stored_image": method(open_file, "stored_image", 0, 3),
        "verify": method(open_file, "verify", 0, 4, threads=1, decode_jpeg=True, max_problems=10),
    },
    "Writer": {
        "": lambda: (_cgxffcv.Writer, ("new.beton", FIELDS), WRITER, {"refuse": refuse, "collect": gc.collect}),
        "append": method(new_writer, "append", 0, [row(0), row(1), [1, "a reason"]], close="abort"),
        "append_arrays": method(column_writer, "append_arrays", 0, columns(), 1, 3, close="abort"),
        "append_packed": method(new_writer, "append_packed", packed(), close="abort"),
        "commit": method(new_writer, "commit", close="abort"),
        "abort": method(new_writer, "abort"),
    },
    "Encoder": {
        "": plain(_cgxffcv.Encoder, FIELDS, seed=0, threads=1, skip_bad=True),
        "encode": method(new_encoder, "encode", 0, [row(0), [1, "no"], row(1)]),
    },
    "Loader": {
        "": lambda: (_cgxffcv.Loader, (the_file(),), {}, {"refuse": refuse}),
        "prepare": method(open_loader, "prepare", OUTPUTS, np.arange(4), **PREPARE),
        "again": method(a_loader, "again"),
        "begin": method(a_loader, "begin", 0, 0, False, False, np.arange(4)),
        "next": method(begun_loader, "next"),
        "stop": method(begun_loader, "stop"),
        "values": method(a_loader, "values", "bytes", np.arange(3)),
        "gather": method(a_loader, "gather", np.arange(3), 0, False),
        "order": method(a_loader, "order", 0),
        "active": method(a_loader, "active"),
        "position": method(a_loader, "position"),
        "batches": method(a_loader, "batches", 5),
        "reseed": method(a_loader, "reseed", 5),
        "fields": method(open_loader, "fields"),
        "dtypes": method(open_loader, "dtypes"),
        "moves": method(a_loader, "moves"),
        "stats": method(a_loader, "stats"),
        "close": method(a_loader, "close"),
    },
    "LoaderBatch": {},
    "Comm": {
        "barrier": method(a_comm, "barrier", 5.0),
        "broadcast": method(a_comm, "broadcast", np.zeros(8), 0, 5.0),
        "allgather": method(a_comm, "allgather", b"abc", 5.0),
        "split": method(a_comm, "split", 0, 0),
        "abort": method(a_comm, "abort", "why"),
        "close": method(a_comm, "close"),
        "node_of": method(a_comm, "node_of", 0),
        "allreduce": method(a_comm, "allreduce", {"a": np.ones((3, 5)), "b": np.ones(4)}, "sum", 32, timeout=5.0),
        "allreduce_async": method(a_comm, "allreduce_async", [np.ones(2000, np.float32)], "sum", {0: 4}, seed=3),
        "allreduce_plans": method(a_comm, "allreduce_plans", np.ones(5, np.float32), bits=2, key="k"),
        "__enter__": method(a_comm, "__enter__"),
        "__exit__": method(a_comm, "__exit__", ValueError, ValueError("x"), None),
    },
    "AllreducePlan": {
        "": plan_of_comm,
        "run": method(a_plan_of_comm, "run", np.ones(107, np.float32)),
        "put": method(a_plan_of_comm, "put", [a_tensor(), a_tensor(7)], 0),
        "wait": method(a_plan_of_comm, "wait", 0),
        **dict.fromkeys(("enqueue_on_lane", "external_space", "external_bind", "external_step")),  # of a GPU
        "restore": method(a_plan_of_comm, "restore", np.ones(107, np.float32)),
        **{name: stage(name) for name in ("stage_messages", "stage_encode", "stage_reduce", "stage_finish")},
        "losses": method(a_plan_of_comm, "losses", np.ones(107, np.float32), np.ones(107, np.float32), (2, 4)),
        "explain": method(a_plan_of_comm, "explain"),
    },
    "AllreduceRun": {
        "run": lambda: (a_run().run, (a_plan_of_comm(),), {}, {"collect": gc.collect}),
        "order": method(a_run, "order", 0),
        "wait": method(a_run, "wait"),
    },
    "Tensor": {
        "copy": method(a_tensor, "copy", -1, 0),
        "made_on": method(a_tensor, "made_on", 0),
        "numpy": method(a_tensor, "numpy"),
        "reshape": method(a_tensor, "reshape", (4, 25)),
        "view": method(a_tensor, "view", "int32"),
        "__dlpack__": method(a_tensor, "__dlpack__", stream=1, max_version=(1, 0), dl_device=(1, 0), copy=False),
        "__dlpack_device__": method(a_tensor, "__dlpack_device__"),
    },
    "AllreduceTrial": {
        "": trial_of_comm,
        "fill": method(a_trial_of_comm, "fill", np.ones(107, np.float32)),
        "read": method(a_trial_of_comm, "read", np.ones(107, np.float32)),
        "time": method(a_trial_of_comm, "time", 107, 2, False),
        "plan": method(a_trial_of_comm, "plan"),
    },
    "Model": {
        "": plain(_cgxffcv.Model, NODES, 3, **MODEL),
        "initialise": method(a_model, "initialise", 1),
        "gradient_elems": method(a_model, "gradient_elems", 1),
    },
    "Plan": {
        "": lambda: (
            _cgxffcv.Plan,
            (a_model(), BATCH, SIDE, SIDE),
            {"training": True, "keep_all": True},
            {"refuse": refuse},
        ),
        "step": method(net_plan, "step", images(), labels(), 0.1, "mean", 0, MEAN, STD),
        "take_totals": method(stepped_plan, "take_totals"),
        "evaluate": method(net_plan, "evaluate", images(), True, 1, -1, MEAN, STD),
        "forward": method(headless_plan, "forward", images(), MEAN, STD),
        "backward": method(
            headless_plan, "backward", np.zeros((BATCH, SIDE // 2, SIDE // 2, 8), np.float32), first_block=0
        ),
        "read": method(stepped_plan, "read", 1, True),
        "shape": method(net_plan, "shape", 1),
        "profile_begin": method(net_plan, "profile_begin"),
        "profile_end": None,
    },
    "Optimizer": {
        "": lambda: (_cgxffcv.Optimizer, ([MUON, RULE], tensors(), 1, "cpu"), {}, {"refuse": refuse}),
        "step": method(an_optimizer, "step", RATES),
        "gradients_finite": method(an_optimizer, "gradients_finite", RATES),
        "load_rates": None,
        "step_scheduled": None,
        "pull": method(an_optimizer, "pull", np.ones(6, np.float32), np.ones(6, np.float32), 0.5),
    },
    "Trainer": {
        "": lambda: (
            _cgxffcv.Trainer,
            (a_model(), None, None),
            trainer_settings(),
            {"refuse": refuse, "collect": gc.collect},
        ),
        "with a communicator": trainer_of_comm,
        "rate": method(a_trainer, "rate", 0, 5),
        "wire": method(lambda: a_trainer(a_comm()), "wire", 0),
        "layers": method(a_trainer, "layers"),
        "norms": method(a_trainer, "norms"),
        "algorithms": method(a_trainer, "algorithms"),
        "library": method(a_trainer, "library"),
        "read": method(a_trainer, "read", "parameters"),
        "write": None,
        "hash": method(a_trainer, "hash"),
        "explain": method(lambda: a_trainer(a_comm()), "explain"),
        "close": method(a_trainer, "close"),
    },
    "Runner": {
        "": lambda: (_cgxffcv.Runner, (a_trainer(), (), 7, False), {}, {"refuse": refuse, "collect": gc.collect}),
        **dict.fromkeys(("begin", "put", "drop", "whiten", "evaluate", "look", "seconds")),  # of a GPU
        "run": of_runner("run", 3, np.zeros((1, 5)), np.zeros(BATCH, np.float32)),
        "evaluate_fed": of_runner("evaluate_fed", BATCH, VIEWS),
        "restart": method(a_runner, "restart", 5),
        "graphs": method(a_runner, "graphs"),
        "close": method(a_runner, "close"),
    },
}


def a_batch():
    return begun_loader().next()[1].base


MAKERS = {
    "BetonFile": open_file,
    "Writer": new_writer,
    "Encoder": new_encoder,
    "Loader": begun_loader,
    "LoaderBatch": a_batch,
    "Comm": a_comm,
    "AllreducePlan": a_plan_of_comm,
    "AllreduceTrial": a_trial_of_comm,
    "AllreduceRun": a_run,
    "Tensor": a_tensor,
    "Model": a_model,
    "Plan": stepped_plan,
    "Optimizer": an_optimizer,
    "Trainer": a_trainer,
    "Runner": a_runner,
}
