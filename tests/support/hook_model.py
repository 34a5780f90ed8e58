"""Parameters, gradients and buckets for tests of the hook for DistributedDataParallel with a stand-in for PyTorch, and
the byte-level model of what the hook makes of them."""

import numpy as np
from allreduce_model import Case, simulate
from quant_model import complete

SHAPES = {"a": (40, 50), "bias": (60,), "b": (30, 40), "small": (7, 9)}
MIXED = {"default": 3, "b": 8}  # bits
FIRST, LATER = [["a", "bias", "b", "small"]], [["small", "b"], ["bias", "a"]]  # buckets, and rebuilt ones


def drawn(rank, step):
    """A rank's gradients in a step, by name."""
    random = np.random.default_rng([rank, step])
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


class Expected:
    """The averages of buckets, with residuals that follow their parameters."""

    def __init__(self, size, feedback, bits):
        self.size, self.feedback, self.bits = size, feedback, dict(bits)
        self.kept = {n: [np.zeros(int(np.prod(s)), np.float32) for _ in range(size)] for n, s in SHAPES.items()}

    def spec(self, name, bits=None):
        own = bits or self.bits.get(name, self.bits["default"])
        return None if name in ("bias", "small") else complete(own, 256)

    def average(self, names, everyones):
        """The bytes of one bucket after all ranks' gradients."""
        case = Case([(int(np.prod(SHAPES[n])), self.spec(n)) for n in names], feedback=self.feedback)
        case.residual = [np.concatenate([self.kept[n][r] for n in names]) for r in range(self.size)]
        result = simulate(case, [np.concatenate([g[n].ravel() for n in names]) for g in everyones])
        ends = np.cumsum([np.prod(SHAPES[n]) for n in names])[:-1]
        for rank in range(self.size):
            for name, part in zip(names, np.split(case.residual[rank], ends), strict=True):
                self.kept[name][rank] = part
        return result.tobytes()
