"""Training with JAX: batches from our loader, gradients averaged over the ranks in 4 bits.

    mpirun -np 2 python examples/jax_training.py [FOLDER]

A network of two layers on the sample of CIFAR-10 that ships with the package, written as .beton files into FOLDER.
Needs jax; also runs without mpirun. JAX arrays are immutable, so an allreduce returns new ones. On GPUs, assign one to
each rank in JAX's usual way, for example with CUDA_VISIBLE_DEVICES, before jax is imported.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cgxffcv import comm
from cgxffcv.cifar import sample
from cgxffcv.fields import IntField, RGBImageField
from cgxffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
from cgxffcv.loader import Loader, OrderOption
from cgxffcv.transforms import NormalizeImage, RandomHorizontalFlip, Squeeze
from cgxffcv.writer import DatasetWriter

BATCH, EPOCHS, RATE, HIDDEN = 100, 5, 0.05, 128
# w1 and w2 in 4 bits, one-dimensional arrays exactly; algorithm: "auto" would send plain sums where they are faster
NARROW = {"bits": 4, "algorithm": "sra"}
MEAN, STD = np.array([125.3, 123.0, 113.9]), np.array([63.0, 62.1, 66.7])


def write(folder: Path) -> None:
    images, labels = sample.load()
    pixels = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    for name, part in (("train", slice(sample.TRAIN)), ("test", slice(sample.TRAIN, None))):
        writer = DatasetWriter(folder / f"jax_{name}.beton", {"image": RGBImageField(), "label": IntField()})
        writer.from_arrays(image=pixels[part], label=labels[part])


def batches(path: Path, world: comm.Comm, **options) -> Loader:
    """This rank's share of a file, as float32 (n, 32, 32, 3) and int64 (n,)."""
    image = [SimpleRGBImageDecoder(), RandomHorizontalFlip(), NormalizeImage(MEAN, STD, np.float32)]
    pipelines = {"image": image, "label": [IntDecoder(), Squeeze(1)]}
    return Loader(path, BATCH, seed=0, pipelines=pipelines, rank=world.rank, world_size=world.size, **options)


def first_parameters() -> dict[str, jax.Array]:
    random = np.random.default_rng(0)  # the same on all ranks
    return {
        "w1": jnp.asarray(random.normal(0, 3072**-0.5, (3072, HIDDEN)), jnp.float32),
        "b1": jnp.zeros(HIDDEN),
        "w2": jnp.asarray(random.normal(0, HIDDEN**-0.5, (HIDDEN, 10)), jnp.float32),
        "b2": jnp.zeros(10),
    }


def logits(parameters: dict[str, jax.Array], images: jax.Array) -> jax.Array:
    hidden = jax.nn.relu(images.reshape(len(images), -1) @ parameters["w1"] + parameters["b1"])
    return hidden @ parameters["w2"] + parameters["b2"]


@jax.jit
@jax.value_and_grad
def gradients(parameters: dict[str, jax.Array], images: jax.Array, labels: jax.Array) -> jax.Array:
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits(parameters, images)), labels[:, None], axis=1)
    return -chosen.mean()


@jax.jit
def hits(parameters: dict[str, jax.Array], images: jax.Array, labels: jax.Array) -> jax.Array:
    return (logits(parameters, images).argmax(axis=1) == labels).sum()


def main(folder: Path) -> None:
    with comm.world() as world:
        if world.rank == 0:
            write(folder)
        world.barrier()
        parameters = first_parameters()
        with batches(folder / "jax_train.beton", world, order=OrderOption.RANDOM) as loader:
            for epoch in range(EPOCHS):
                for images, labels in loader:
                    loss, mine = gradients(parameters, jnp.asarray(images), jnp.asarray(labels))
                    mean = world.allreduce(mine, **NARROW)
                    parameters = {name: value - RATE * mean[name] for name, value in parameters.items()}
                if world.rank == 0:
                    print(f"epoch {epoch + 1}: loss {float(loss):.3f}", flush=True)
        with batches(folder / "jax_test.beton", world, drop_last=False, evaluate=True) as loader:
            right = sum(int(hits(parameters, jnp.asarray(images), jnp.asarray(labels))) for images, labels in loader)
            total = world.allreduce(np.array([right]), op="sum")[0]
        plan = world.allreduce_plans(mine, **NARROW)[0]
        if world.rank == 0:
            print(f"{world.size} ranks: {total} of {loader.num_samples} test images are right")
            print(f"a step sends {plan.wire_bytes:,} bytes instead of {plan.plain_bytes:,}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
