"""The hook's thread with real PyTorch, on a GPU."""

import importlib.util

import pytest

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs PyTorch: make test-torch"),
]


def test_a_result_waits_for_what_the_action_has_put_on_the_stream():
    """A future that was completed with nothing remembers no stream: who waited for it read what was there before."""
    import torch

    from cgxffcv.interop.ddp.worker import Worker

    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    worker, stream = Worker(), torch.cuda.Stream()
    for _ in range(3):
        result = torch.zeros(1 << 20, device="cuda")
        torch.cuda.synchronize()

        def put(result=result):
            with torch.cuda.stream(stream):
                torch.cuda._sleep(100_000_000)
                result.fill_(1)

        assert bool((worker.submit(put, result, stream).wait() == 1).all())
    worker.drain()
