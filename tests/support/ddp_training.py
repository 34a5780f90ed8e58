"""For tests/torch/worker_hook.py: a module in DistributedDataParallel with the hook, and the byte-level model of what
must come out. The second argument of the program is the folder for results."""

import hashlib
import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from allreduce_model import Case, simulate
from quant_model import complete
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cgxffcv.interop.torch import CGXState, cgx_hook

OUT = Path(sys.argv[2])
SMALL = 8_000  # bytes of a bucket
NODES = int(os.environ.get("CGXFFCV_COMM_NODES", 1))
GPUS = int(os.environ.get("TEST_GPUS", 0))
ALGORITHM = "two_level" if 1 < NODES < int(os.environ.get("WORLD_SIZE", 0)) else "sra"
DEVICE = f"cuda:{int(os.environ['LOCAL_RANK']) % GPUS}" if GPUS else "cpu"


def start():
    """The process group that a script makes: by torchrun's environment, or with mpirun's ranks over a file."""
    if "OMPI_COMM_WORLD_RANK" in os.environ:
        place = {name: int(os.environ[f"OMPI_COMM_WORLD_{name.upper()}"]) for name in ("rank", "size")}
        dist.init_process_group("gloo", f"file://{OUT}/store", rank=place["rank"], world_size=place["size"])
    else:
        several = int(os.environ["WORLD_SIZE"]) <= GPUS  # NCCL refuses two ranks on one
        dist.init_process_group("nccl" if several else "gloo")
    put(f"pid.{dist.get_rank()}", os.getpid())


def put(name, value=""):
    partial = OUT / f".{name}"
    partial.write_text(str(value))
    partial.rename(OUT / name)


def as_numpy(tensor):
    plain = tensor.detach().cpu()
    return plain.view(torch.int16).numpy().view(np.uint16) if plain.dtype is torch.bfloat16 else plain.numpy()


def digest(tensors):
    """Of the bytes; fails unless all ranks have the same."""
    mine = hashlib.sha256(b"".join(as_numpy(t).tobytes() for t in tensors)).hexdigest()
    everyones = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, mine)
    assert len(set(everyones)) == 1, "replicas differ"


class Weights(nn.Module):
    """Its loss makes every gradient what the test has drawn: the sum of weight * gradient."""

    SHAPES = {"a.weight": (60, 50), "a.bias": (60,), "b.weight": (33, 40), "b.small": (7, 9), "c.weight": (2050, 2)}

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype
        for name, shape in self.SHAPES.items():
            zeros = torch.zeros(shape, dtype=dtype, device=DEVICE)
            self.register_parameter(name.replace(".", "_"), nn.Parameter(zeros))

    def forward(self, gradients, without=()):
        named = [(n, p) for n, p in self.named_parameters() if n not in without]
        return sum((p * gradients[n]).sum(dtype=torch.float32) for n, p in named)


def drawn(model, rank, step):
    """The gradients of a rank by name."""
    random = torch.Generator().manual_seed(100 * step + rank)
    return {name: torch.randn(p.shape, generator=random).mul_(0.1 + rank).to(p) for name, p in model.named_parameters()}


class Model:
    """What must come out: the byte-level model of the allreduce over the buckets that the hook saw."""

    def __init__(self, module, bits, bucket_size=512, rounding="nearest", **options):
        self.module, self.bits, self.bucket_size, self.options = module, bits, bucket_size, options
        self.names = {id(p): n for n, p in module.named_parameters()}
        self.rounding, self.call, self.residual = rounding, 0, {}
        self.seen = []  # names by bucket, in the order of calls

    def hook(self, state, bucket):
        self.seen.append([self.names[id(p)] for p in bucket.parameters()])
        return cgx_hook(state, bucket)

    def spec(self, name, shape, dtype):
        bits = self.bits.get(name) or (self.bits["default"] if len(shape) > 1 and np.prod(shape) >= 1024 else 32)
        return None if bits == 32 else complete(bits, self.bucket_size, dtype, rounding=self.rounding)

    def is_plain(self, names):
        """Whether nothing of a bucket is compressed."""
        shapes = dict(self.module.named_parameters())
        return all(self.spec(name, tuple(shapes[name].shape), "float32") is None for name in names)

    def expected(self, names, gradients):
        """The averages of one bucket from all ranks' gradients, by name."""
        dtype = str(self.module.dtype).removeprefix("torch.")
        shapes = [tuple(gradients[0][name].shape) for name in names]
        layers = [(int(np.prod(s)), self.spec(n, s, dtype)) for n, s in zip(names, shapes, strict=True)]
        case = Case(layers, dtype, nodes=NODES, call=self.call, **self.options)
        if case.feedback:
            zeros = {n: [np.zeros(e, np.float32) for _ in gradients] for n, (e, _) in zip(names, layers, strict=True)}
            kept = [self.residual.get(n, zeros[n]) for n in names]
            case.residual = [np.concatenate([k[r] for k in kept]) for r in range(len(gradients))]
        flat = [np.concatenate([as_numpy(g[name]).ravel() for name in names]) for g in gradients]
        out = simulate(case, flat)
        result, first = {}, 0
        for name, (elems, _) in zip(names, layers, strict=True):
            result[name] = out[first : first + elems]
            if case.feedback:
                self.residual[name] = [r[first : first + elems] for r in case.residual]
            first += elems
        return result


def check_steps(model, module, wrapped, *, steps=4, without=(), first=0):
    """Gradients of some steps, bit for bit; rank 1 leaves out the parameters `without`."""
    ranks, me = range(dist.get_world_size()), dist.get_rank()
    trained = sorted(name for name, parameter in module.named_parameters() if parameter.requires_grad)
    for step in range(first, first + steps):
        everyones = [drawn(module, rank, step) for rank in ranks]
        for name in without:
            everyones[1][name].zero_()
        model.seen.clear()
        module.zero_grad()
        wrapped(everyones[me], without if me == 1 else ()).backward()
        assert sorted(n for names in model.seen for n in names) == trained
        for names in model.seen:
            for name, expected in model.expected(names, everyones).items():
                found = as_numpy(dict(module.named_parameters())[name].grad).ravel()
                if (NODES > 1 or GPUS) and model.is_plain(names):  # then the group adds, in an order of its own
                    scale = sum(np.abs(g[name].cpu().numpy()).ravel() for g in everyones)
                    assert (np.abs(found - expected) <= 1e-6 * scale).all()
                else:
                    assert found.tobytes() == expected.tobytes(), (name, step, names)
        model.call += 1
        digest(p.grad for p in module.parameters() if p.requires_grad)


class Training:
    """A module in DistributedDataParallel with the hook, and what must come out."""

    def __init__(
        self,
        dtype=torch.float32,
        algorithm=ALGORITHM,
        feedback=False,
        bits=4,
        ddp=None,
        frozen=(),
        adaptive=None,
        **options,
    ):
        self.module = Weights(dtype)
        for name in frozen:
            getattr(self.module, name).requires_grad_(False)
        settings = {"bucket_cap_mb": SMALL / 2**20, **(ddp or {})}
        self.wrapped = DistributedDataParallel(self.module, **settings)
        rules = bits if isinstance(bits, dict) else {"default": bits}
        own = {"algorithm": algorithm, "error_feedback": feedback, "timeout": 60, "adaptive_bits": adaptive, **options}
        self.state = CGXState(None, 1024, {"bits": bits, "bucket_size": 512}, model=self.module, **own)
        self.model = Model(self.module, rules, algorithm=algorithm, feedback=feedback, **options)
        self.wrapped.register_comm_hook(self.state, hooked(self.model))

    def check(self, **more):
        check_steps(self.model, self.module, self.wrapped, **more)
        return len(self.model.seen)


def run_values(*arguments, steps=4, without=(), **options):
    return Training(*arguments, **options).check(steps=steps, without=without)


def hooked(model):
    def hook(state: CGXState, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        return model.hook(state, bucket)

    return hook
