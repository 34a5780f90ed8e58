"""comm.allreduce of PyTorch's tensors, with threads as ranks on the CPU; on a GPU, if there is one, with one rank."""

import importlib.util

import pytest
from thread_ranks import all_good, run_ranks

from cgxffcv import comm

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs PyTorch: make test-torch"),
]


def test_tensors_on_the_cpu():
    import torch

    def work(world, rank):
        x = torch.full((3, 4), float(rank))
        assert world.allreduce(x, op="sum") is x and (x == 1).all()
        halves = torch.full((2000, 2), float(rank), dtype=torch.bfloat16)
        assert world.allreduce(halves, bits=8) is halves and (halves == 0.5).all()
        layer = torch.nn.Linear(50, 40)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.fill_(rank)
        out = world.allreduce(dict(layer.named_parameters()), op="sum")
        assert out["weight"] is layer.weight and all((p == 1).all() for p in layer.parameters())
        handle = world.allreduce_async([x, halves], op="sum")
        handle.wait()
        assert (x == 2).all() and (halves == 1).all()
        new = world.allreduce(x, in_place=False)
        assert isinstance(new, torch.Tensor) and new is not x and (new == 2).all()
        assert world.allreduce(torch.arange(4), op="max").tolist() == [0, 1, 2, 3]

    all_good(run_ranks(2, work))


def test_tensors_that_are_refused():
    import torch

    refused = [
        (torch.ones(3, 4).T, "not in C order"),
        (torch.ones(3, dtype=torch.complex64), "not of a type that is summed"),
        (torch.ones(3, dtype=torch.bool), "not of a type that is summed"),
        (torch.ones(2).to_sparse(), "the array: "),
    ]
    with comm.world() as world:
        for tensor, words in refused:
            with pytest.raises((TypeError, ValueError, BufferError), match=words):
                world.allreduce(tensor)


def test_tensors_on_a_gpu():
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    side = torch.cuda.Stream()
    with comm.world() as world:
        x = torch.zeros(1 << 20, device="cuda")
        for stream in (None, side):
            with torch.cuda.stream(stream):
                x.add_(1)
                assert world.allreduce(x, op="sum") is x
                world.allreduce(x, bits=4)
                world.allreduce_async(x, op="sum").wait()
                x.add_(1)
            torch.cuda.synchronize()
        assert (x == 4).all()
        new = world.allreduce(x.bfloat16(), in_place=False)
        assert new.is_cuda and new.dtype == torch.bfloat16 and (new == 4).all()
