"""JAX arrays reduced by two ranks that are threads; to be run in a separate process, since JAX's threads outlive every
use and cause a warning at each later fork."""

import jax
import numpy as np
from jax import numpy as jnp
from thread_ranks import all_good, run_ranks


def work(world, rank):
    x, halves = jnp.full((3, 4), rank, jnp.float32), jnp.full((2000, 2), rank, jnp.bfloat16)
    new = world.allreduce(x, op="sum")
    assert isinstance(new, jax.Array) and (np.asarray(new) == 1).all() and (np.asarray(x) == rank).all()
    narrow = world.allreduce(halves, bits=8)
    assert narrow.dtype == jnp.bfloat16 and (narrow == 0.5).all()
    later = world.allreduce_async({"a": x, "n": jnp.arange(4)}, op="sum").wait()
    assert (later["a"] == 1).all() and later["n"].tolist() == [0, 2, 4, 6]


all_good(run_ranks(2, work))
print("all as it should be")
