"""The class Loader, and one pass of it."""

from __future__ import annotations

import contextlib
import operator
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import _cgxffcv
import numpy as np

from cgxffcv.loader.orders import OrderOption, as_ids, choose_order
from cgxffcv.loader.ranks import choose_ranks
from cgxffcv.pipeline.compile import Output, compile_outputs

MAX_EPOCH = 2**32 - 1


def check_epoch(epoch: int) -> int:
    if not 0 <= epoch <= MAX_EPOCH:
        raise ValueError(f"epoch must be in 0..{MAX_EPOCH}, not {epoch!r}")
    return epoch


def choose_seed(seed: int | None, world_size: int, order: Any) -> int:
    if seed is None and world_size > 1:
        if order is not OrderOption.SEQUENTIAL:
            warnings.warn("no seed was given on several ranks, which must agree on one: it is 0", stacklevel=3)
        return 0
    if seed is None:
        return int(np.random.randint(0, np.iinfo(np.int32).max))  # so that numpy.random.seed decides, as with FFCV
    seed = operator.index(seed)
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in 0..2**64-1, not {seed}")
    return seed


class EpochIterator(Iterator):
    """One pass over the data; len() is what is left of it. A newer pass of the same Loader ends it."""

    def __init__(self, loader: Loader, number: int, left: int):
        self._loader: Loader | None = loader
        self._number, self._left = number, left

    def __len__(self) -> int:
        return self._left

    def __next__(self) -> tuple:
        loader = self._loader
        if loader is None:
            raise StopIteration
        if loader._pass != self._number:
            self._loader = None
            raise RuntimeError("this pass has ended: its Loader was closed or began another pass")
        try:
            batch = loader._core.next()
        except KeyboardInterrupt:
            raise
        except BaseException:
            self.close()
            raise
        if batch is None:
            self.close()
            raise StopIteration
        self._left -= 1
        return loader._finish(*batch)

    def close(self) -> None:
        """Ends the pass; its workers stop."""
        loader, self._loader = self._loader, None
        if loader is not None and loader._pass == self._number:
            loader._pass = 0
            loader._core.stop()

    def __del__(self):
        # RuntimeError: another thread is inside this Loader, and its pass goes on; AttributeError: never made whole.
        with contextlib.suppress(AttributeError, RuntimeError, ValueError):
            self.close()


class Loader:
    """Batches of a .beton file, made by worker threads.

    Iterating gives tuples with one entry for each field (pipelines may drop or add entries): NumPy arrays over the
    batch's own memory, without a copy, or torch tensors where ToTensor is in the pipeline and torch is installed. A
    batch that is kept stays valid; its memory returns to the loader when its last array dies. Order and augmentations
    are pure functions of (seed, epoch, sample, operation): any number of workers, ranks or a resumed run give the same.

    Args:
        fname: path of the file.
        batch_size: samples a batch, on each rank.
        num_workers: threads; below 1: as many as processors.
        os_cache: False asks the system to read each batch's pages ahead: for data larger than memory.
        order: an OrderOption; or an array of sample numbers, a sampler, a callable or an object or class with
            `sample_order(epoch)`, each giving the samples of an epoch for all ranks.
        distributed: take rank and world_size from torch.distributed or mpirun's environment.
        seed: of order and augmentations; None: drawn from numpy.random, or 0 on several ranks.
        indices: the samples to use (numbers, or a boolean mask of one entry for each of the file's); None: all.
        pipelines: for each field a list of a decoder and transforms, a PipelineSpec, or None to leave it out.
        custom_fields: decoders of user-defined fields: not supported yet.
        drop_last: leave out the last batch if it is incomplete; else the ranks share it evenly, to within one sample.
        batches_ahead: batches made in advance.
        recompile: accepted for FFCV's sake; nothing is compiled at run time.
        order_kwargs: window_pages of QUASI_RANDOM, or the arguments of a class given as `order`.
        rank, world_size: this process's part: the permutation of an epoch is one for all ranks, and global batch g, of
            batch_size * world_size samples, is cut into the ranks' batches. All ranks have equally many batches.
        resident: decode JPEG images once, and keep their pixels in memory (raw images are read from the file's
            mapping in any case).
        ids: each batch ends with its sample numbers, int64, shape (batch,).
        evaluate: random operations are neutral: no flip, no shift, the central crop, no hole.
        page_locked: the number of a GPU, which can then copy batches beside its work; None: ordinary memory.

    Raises:
        OSError, BetonError: the file cannot be opened, or is not as the format demands. ValueError, TypeError,
        IndexError: an argument does not fit; the message names it.
    """

    def __init__(
        self,
        fname: str | os.PathLike,
        batch_size: int,
        num_workers: int = -1,
        os_cache: bool = True,
        order: Any = OrderOption.SEQUENTIAL,
        distributed: bool = False,
        seed: int | None = None,
        indices: Any = None,
        pipelines: Mapping[str, Any] | None = None,
        custom_fields: Mapping[str, Any] | None = None,
        drop_last: bool = True,
        batches_ahead: int = 3,
        recompile: bool = False,
        order_kwargs: Mapping[str, Any] | None = None,
        *,
        rank: int | None = None,
        world_size: int | None = None,
        resident: bool = False,
        ids: bool = False,
        evaluate: bool = False,
        page_locked: int | None = None,
    ):
        self._args = {name: value for name, value in locals().items() if name != "self"}
        if custom_fields:
            raise NotImplementedError(
                f"custom_fields ({', '.join(custom_fields)}): user-defined fields are not supported by the loader yet"
            )
        self.fname, self.batch_size, self.drop_last = os.fspath(fname), batch_size, bool(drop_last)
        self.batches_ahead, self.evaluate, self.ids = batches_ahead, bool(evaluate), bool(ids)
        self.next_epoch = 0
        self.rank, self.world_size = choose_ranks(distributed, rank, world_size)
        self.seed = choose_seed(seed, self.world_size, order)
        self._order, self._order_of, window = choose_order(order, dict(order_kwargs or {}), self)
        self._pass = self._passes = 0  # the number of the pass under way (0: none), and of the last one
        self._resume: tuple[int, int] | None = None
        self._core = _cgxffcv.Loader(self.fname)
        self.indices = None if indices is None else as_ids(indices, "indices", self._core.in_file)
        self.outputs: list[Output] = compile_outputs(self._core.fields(), dict(pipelines or {}), self.fname)
        self._core.prepare(
            outputs=tuple(column for output in self.outputs for column in output.columns), batch_size=batch_size,
            order=self._order.value, window_pages=window, seed=self.seed, workers=num_workers, ahead=batches_ahead,
            world_size=self.world_size, rank=self.rank, drop_last=self.drop_last, resident=bool(resident),
            read_ahead=not os_cache, page_locked=-1 if page_locked is None else page_locked, indices=self.indices,
        )  # fmt: skip
        if self._order_of is None and self._core.samples > 0 and len(self) == 0:
            warnings.warn(
                f"{self._core.samples} samples do not fill one batch of {batch_size} on {self.world_size} rank(s): "
                "with drop_last=True this Loader gives none",
                stacklevel=2,
            )

    # ---- passes ----

    def __iter__(self) -> EpochIterator:
        epoch, first = self._resume or (self.next_epoch, 0)
        order = self._order_of(epoch) if self._order_of else None
        total = self._core.batches(self._core.samples if order is None else len(order))
        self._pass = 0
        self._core.begin(check_epoch(epoch), first, self.evaluate, False, order)
        self._resume = None
        self.next_epoch = epoch + 1
        self._passes += 1
        self._pass = self._passes
        return EpochIterator(self, self._pass, total - first)

    def __len__(self) -> int:
        """The batches of a whole epoch on this rank."""
        if self._order_of is None:
            return self._core.batches(self._core.samples)
        return self._core.batches(len(self._order_of(self.next_epoch)))

    @property
    def num_samples(self) -> int:
        """The samples in use, over all ranks."""
        return self._core.samples

    def _finish(self, arrays: tuple, ids: np.ndarray) -> tuple:
        entries, column = [], 0
        for output in self.outputs:
            width = len(output.columns)
            entries.append(output.finish(arrays[column : column + width], ids))
            column += width
        if self.ids:
            entries.append(ids)
        return tuple(entries)

    def next_traversal_order(self) -> np.ndarray:
        """The sample numbers of the next epoch in order, for all ranks, int64."""
        if self._order_of is None:
            return self._core.order(check_epoch(self.next_epoch))
        return self._order_of(self.next_epoch)

    def get_batch(self, ids: Any, epoch: int | None = None, evaluate: bool | None = None) -> tuple:
        """One batch of these samples, as the epoch (default: the current one) would make them, apart from any pass."""
        if epoch is None:
            epoch = max(self.next_epoch - 1, 0)
        neutral = self.evaluate if evaluate is None else bool(evaluate)
        return self._finish(*self._core.gather(as_ids(ids, "ids", self._core.in_file), check_epoch(epoch), neutral))

    def filter(self, field_name: str, condition: Callable[[Any], bool]) -> Loader:
        """A Loader over the samples for whose value `condition` holds.

        `condition` is called once a sample with its row of the field's output, random operations neutral. The new
        Loader's `indices` are sample numbers of the file, also if this one has indices.
        """
        names = [output.name for output in self.outputs]
        if field_name not in names:
            raise ValueError(f"filter: no output is named {field_name!r}; there are {', '.join(names)}")
        pipelines = dict(self._args["pipelines"] or {})
        only = {name: pipelines.get(name, ()) if name == field_name else None for name in [*names, *pipelines]}
        changes = {
            "pipelines": only, "order": OrderOption.SEQUENTIAL, "order_kwargs": None, "drop_last": False, "ids": True,
            "distributed": False, "rank": 0, "world_size": 1, "seed": self.seed, "evaluate": True,
        }  # fmt: skip
        chosen: list[int] = []
        with Loader(**{**self._args, **changes}) as scan:
            for values, ids in scan:
                chosen += [number for value, number in zip(values, ids.tolist(), strict=True) if condition(value)]
        return Loader(**{**self._args, "seed": self.seed, "indices": np.array(chosen, dtype=np.int64)})

    # ---- state ----

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands, as plain numbers and texts: after load_state_dict, iterating goes on with the batch
        that comes next, bit for bit. Within a loop, that is the one after the batch in hand."""
        epoch, batch = self._resume or self._core.position() or (self.next_epoch, 0)
        if batch == 0:
            epoch = self.next_epoch if self._resume is None and self._pass == 0 else epoch
        return {
            "version": 1,
            "epoch": epoch,
            "samples_done": batch * self.batch_size * self.world_size,
            "seed": self.seed,
            "order": self._order.name if self._order_of is None else "CUSTOM",
            "num_samples": self._core.samples,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up where state_dict was called, also with another number of workers or ranks, or another batch size
        if that many samples are whole batches. Raises ValueError where the state does not fit."""
        expected = {**self.state_dict(), "seed": state.get("seed")}
        for name in ("version", "order", "num_samples"):
            if state.get(name) != expected[name]:
                raise ValueError(
                    f"load_state_dict: {name} is {state.get(name)!r} in the state, but {expected[name]!r} here"
                )
        step, done = self.batch_size * self.world_size, int(state["samples_done"])
        if done < 0 or done % step:
            raise ValueError(
                f"load_state_dict: {done} samples are done, which is no multiple of batch_size * world_size = {step}"
            )
        self._pass = 0
        self._core.reseed(choose_seed(state["seed"], self.world_size, self._order))
        self.seed = state["seed"]
        self._resume = (check_epoch(int(state["epoch"])), done // step)
        self.next_epoch = self._resume[0]

    def stats(self) -> dict[str, Any]:
        """Counts, seconds (waited by the consumer; worked, of it in the JPEG decoder, and idle by all workers), batch
        buffers (slots) and bytes of memory."""
        return self._core.stats()

    # ---- the end ----

    def close(self) -> None:
        """Stops the threads and closes the file; batches in hand stay valid. May be called twice."""
        self._pass = 0
        self._core.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"Loader({self.fname!r}, batch_size={self.batch_size}, outputs={[output.name for output in self.outputs]})"
        )
