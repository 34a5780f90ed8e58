"""The class Loader."""

from __future__ import annotations

import contextlib
import difflib
import html
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import _cgxffcv
import numpy as np
from _cgxffcv import BetonError

from cgxffcv.classes import common_names
from cgxffcv.decoders import in_pieces
from cgxffcv.loader.epoch_iterator import EpochIterator
from cgxffcv.loader.explain import explain
from cgxffcv.loader.orders import OrderInForce, OrderOption, as_ids
from cgxffcv.loader.settings import OS_CACHE, Plan, Setting
from cgxffcv.loader.sources import Opened, Readers, absolute, all_paths
from cgxffcv.pipeline.compile import Output
from cgxffcv.reader import Reader, check_custom_names, custom_fields_of, layouts_of
from cgxffcv.sheet import as_html
from cgxffcv.wording import NotebookText, noted, whole_number

MAX_EPOCH = 2**32 - 1


def check_epoch(epoch: int) -> int:
    epoch = whole_number(epoch, "epoch")
    if not 0 <= epoch <= MAX_EPOCH:
        raise ValueError(f"epoch must be in 0..{MAX_EPOCH}, not {epoch!r}")
    return epoch


def _again(kind: type[Loader], arguments: Mapping[str, Any], next_epoch: int = 0) -> Loader:
    """A Loader of that class, whose own __init__ may take something else."""
    loader = kind.__new__(kind)
    Loader.__init__(loader, **arguments)
    loader.next_epoch = next_epoch
    return loader


def _rows(values: Any, count: int) -> Iterable[Any]:
    """A batch's values one by one, also of the pairs that BytesDecoder gives, and of tensors on a GPU."""
    if isinstance(values, _cgxffcv.Tensor):
        return values.copy(-1).numpy()
    if not isinstance(values, tuple):
        return values
    return in_pieces(*values) if len(values[1]) == count + 1 else zip(*values, strict=True)


class Loader:
    """Batches of a .beton file, or of several, made by worker threads.

    Iterating gives tuples with one entry for each field (pipelines may drop or add entries): NumPy arrays over the
    batch's own memory, without a copy, or torch tensors if ToTensor is in the pipeline and torch is installed, or if
    there is no pipeline and the program uses torch (`arrays`). A batch that is kept stays valid; its memory
    returns to the loader when its last array dies. Passes may run at the same time (`zip(loader, loader)`), each over
    its own epoch with its own workers; with `resident` the next one ends them. Order and augmentations are pure
    functions of (seed, epoch, sample, operation): any number of workers, ranks or a resumed run give the same. Only
    ImageMixup and LabelMixup also depend on the rank's batch: a sample's partner is the one before it there.

    All arguments but custom_fields are also attributes. A value that is assigned to one (other than fname and
    recompile) is checked like an argument, and applies from the next epoch on. `next_epoch` is the number of the epoch
    that comes next.

    Args:
        fname: path of the file, or a list of paths of files with the same fields, which are read as one: their samples
            follow each other, and so do sample numbers. The attribute is the absolute path, or a tuple of them.
        batch_size: samples per batch, on each rank.
        num_workers: threads; below 1: as many as cores.
        os_cache: False, for data larger than memory: workers read their samples into memory of their own instead of
            mapping the file, and the next batch's are requested ahead, by whole pages with QUASI_RANDOM. By default
            True, unless FFCV_DEFAULT_CACHE_PROCESS=1 is set when cgxffcv is imported.
        order: an OrderOption; or an array of sample numbers, a sampler, a callable or an object or class with
            `sample_order(epoch)`, each giving the samples of an epoch for all ranks; those that are not among `indices`
            are left out. A class is called with the Loader, whose attributes (indices, seed, reader...) it may read.
        distributed: take rank and world_size from torch.distributed or mpirun's environment.
        seed: of order and augmentations; None: drawn from numpy.random, or 0 on several ranks.
        indices: the samples to use (numbers, or a boolean mask of one entry for each of the file's); None: all. The
            attribute is an array of numbers in any case.
        pipelines: for each field a list of a decoder and transforms, a PipelineSpec, or None to leave it out.
        custom_fields: {name: class or instance} of a user's own fields, see cgxffcv.fields.Field.
        drop_last: leave out the last batch if it is incomplete; else the ranks share it evenly, to within one sample.
        batches_ahead: batches made in advance, at most; None: 3, or fewer (at least 1) if these and the two that the
            program may hold take more than 256 MiB.
        recompile: accepted for compatibility with FFCV; nothing is compiled at run time.
        order_kwargs: window_pages of QUASI_RANDOM, or the arguments of a class given as `order`.
        rank, world_size: this process's part: the permutation of an epoch is the same for all ranks, and global batch
            g, of batch_size * world_size samples, is cut into the ranks' batches. All ranks have the same number of
            batches.
        resident: decode JPEG images once, and keep their pixels in memory (raw images are read from the file's mapping
            in any case).
        ids: each batch ends with its sample numbers, int64, shape (batch,).
        evaluate: random operations are neutral: no flip, no shift, the central crop, no hole.
        page_locked: the number of a GPU, which can then copy batches while it works; None: that of a pipeline's
            ToDevice, if there is one; False: ordinary memory.
        arrays: "torch" or "numpy": what fields without a pipeline give, and what ToDevice takes in a pipeline without
            ToTensor; None: "torch" if the program has imported torch by now, or a pipeline has ToTensor and torch is
            installed. It is decided when the Loader is made, or `arrays` or `pipelines` are assigned; torch is not
            imported for anything else.
        on_error: "raise" ends the pass at a sample that is damaged; "zero" makes a damaged JPEG image black before the
            rest of the pipeline, and counts it (stats()["blanked"]); "skip" leaves out a sample of which the workers
            cannot make a value: its batch is shorter, otherwise unchanged, perhaps empty, so that all ranks have the
            same number of batches, and it is counted (stats()["skipped"]). get_batch raises in any case.

    Raises:
        OSError, BetonError: the file cannot be opened, or does not follow the format. ValueError, TypeError,
        IndexError: an argument does not fit; the message names it. DataError: a label has different names in two of
        several files (FILE.classes).
    """

    def __init__(
        self,
        fname: str | os.PathLike | Sequence[str | os.PathLike],
        batch_size: int,
        num_workers: int = -1,
        os_cache: bool = OS_CACHE,
        order: Any = OrderOption.SEQUENTIAL,
        distributed: bool = False,
        seed: int | None = None,
        indices: Any = None,
        pipelines: Mapping[str, Any] | None = None,
        custom_fields: Mapping[str, Any] | None = None,
        drop_last: bool = True,
        batches_ahead: int | None = None,
        recompile: bool = False,
        order_kwargs: Mapping[str, Any] | None = None,
        *,
        rank: int | None = None,
        world_size: int | None = None,
        resident: bool = False,
        ids: bool = False,
        evaluate: bool = False,
        page_locked: int | bool | None = None,
        arrays: str | None = None,
        on_error: str = "raise",
    ):
        arguments = {name: value for name, value in locals().items() if name != "self"}
        theirs = {*vars(self)}  # what a subclass has set before
        self._fname = absolute(fname)
        self._next_epoch = 0
        self._pass = self._passes = 0  # the number of the pass in progress (0: none), and of the last one
        self._last: Plan | None = None  # of the pass in progress, or of the last one
        self._left_ids: np.ndarray | None = None  # the samples of that pass, if the user's own order gave them
        self._total = 0  # its batches
        self._apart: dict[int, Plan] = {}  # passes that run alongside that one, by their number
        self._drawn: tuple[int, np.ndarray] | None = None  # an epoch, and what a user's order has already given for it
        self._resume: tuple[int, int, np.ndarray | None] | None = None  # epoch, samples done, samples of a user's order
        self._reader: Reader | Readers | None = None
        self._plan: Plan
        first = all_paths(self._fname)[0]
        if isinstance(self._fname, tuple):
            common_names(self._fname)
        self._opened = Opened(all_paths(self._fname))
        custom = custom_fields_of(first, custom_fields) if custom_fields else {}
        core = _cgxffcv.Loader(self._fname, layouts_of(custom))
        check_custom_names(first, custom_fields or {}, core.fields())
        self._adopt(Plan({**arguments, "fname": self._fname}, core, custom, None), None)
        self._names = {*vars(self), "_names"} - theirs  # all others are a subclass's

    # ---- settings ----

    batch_size, num_workers, batches_ahead = Setting(), Setting(), Setting()
    os_cache, resident, page_locked = Setting(), Setting(), Setting()
    order, order_kwargs, seed, indices, drop_last = Setting(), Setting(), Setting(), Setting(), Setting()
    distributed, rank, world_size = Setting(), Setting(), Setting()
    pipelines, ids, evaluate, arrays, on_error = Setting(), Setting(), Setting(), Setting(), Setting()

    def __setattr__(self, name: str, value: Any) -> None:
        users = type(self).__module__.partition(".")[0] != "cgxffcv"  # a class derived from this one
        if name.startswith("_") or hasattr(type(self), name) or users:
            super().__setattr__(name, value)
            return
        known = [key for key, item in vars(Loader).items() if isinstance(item, Setting)]
        close = difflib.get_close_matches(name, [*known, "next_epoch"], 1)
        hint = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(sorted(known))} and next_epoch"
        raise AttributeError(f"a Loader has no setting {name!r}: assigning it would change nothing{hint}")

    def _adopt(self, plan: Plan, before: Plan | None, ordered: bool = False) -> None:
        """Makes the plan the Loader's, or leaves everything as it was. A class given as the order sees it from here on.
        ordered: the order of the plan before is kept, even if it has already drawn."""
        self._plan = plan
        try:
            plan.prepare(self, before if ordered else None)
        except BaseException:
            plan.core.close()
            if before is not None:
                self._plan = before
            raise
        if not ordered:
            self._drawn = None
        if self._pass == 0:
            self._last = None
        if before is not None and before is not self._last:
            before.core.close()

    def _change(self, name: str, value: Any) -> None:
        if self._resume is not None and name in ("indices", "order", "order_kwargs", "seed"):
            raise ValueError(
                f"{name}: load_state_dict has set where the next epoch continues, which {name} would change; assign it "
                "before load_state_dict, or after that epoch has begun"
            )
        before = self._plan
        arguments = {**before.arguments, name: value}
        if name in ("rank", "world_size"):
            arguments = {**arguments, "rank": before.rank, "world_size": before.world_size, name: value}
        self._adopt(Plan(arguments, before.core.again(), before.custom, before, name), before)

    @property
    def fname(self) -> str | bytes | tuple[str | bytes, ...]:
        """The absolute path, or a tuple of those of several files."""
        return self._fname

    @property
    def recompile(self) -> bool:
        """As it was given; it has no effect."""
        return self._plan.arguments["recompile"]

    @property
    def outputs(self) -> list[Output]:
        """What each batch holds, in this order: the fields' names and what is done with them."""
        return self._plan.outputs

    @property
    def reader(self) -> Reader | Readers:
        """The file, or files, sample by sample; opened when it is first asked for, closed with the Loader."""
        if self._reader is None:
            if self._core.closed:
                raise ValueError("this Loader has been closed")
            self._opened.check()
            custom, several = self._plan.arguments["custom_fields"], isinstance(self._fname, tuple)
            self._reader = Readers(self._plan.sources, custom) if several else Reader(self._fname, custom)
        return self._reader

    @property
    def next_epoch(self) -> int:
        """The number of the epoch that comes next; assigning it starts there."""
        return self._next_epoch

    @next_epoch.setter
    def next_epoch(self, epoch: int) -> None:
        self._next_epoch = check_epoch(epoch)
        self._resume = None
        if self._pass == 0:
            self._last = None

    @property
    def num_samples(self) -> int:
        """The samples in use, over all ranks."""
        return self._plan.num_samples

    @property
    def _core(self) -> _cgxffcv.Loader:
        return self._plan.core

    # ---- passes ----

    def _take_changes(self) -> None:
        """Applies what has been assigned to decoders and transforms themselves (`decoder.output_size = ...`)."""
        if self._plan.outdated():
            before = self._plan
            self._adopt(Plan(before.arguments, before.core.again(), before.custom, before), before, ordered=True)

    def __iter__(self) -> EpochIterator:
        self._take_changes()
        epoch, first, order = self._next_pass()
        self._set_apart()
        plan = self._plan
        total = plan.core.batches(plan.num_samples if order is None else len(order))
        plan.core.begin(check_epoch(epoch), first, plan.evaluate, False, order)
        self._resume = self._drawn = None
        self._last, self._left_ids, self._total = plan, order, total
        self._next_epoch = epoch + 1
        self._passes += 1
        self._pass = self._passes
        return EpochIterator(self, plan, epoch, self._pass, total - first)

    def _next_pass(self) -> tuple[int, int, np.ndarray | None]:
        """Epoch, first batch and, with a user's order, the samples of the pass that comes next."""
        if self._resume is None:
            return self._next_epoch, 0, self._draw()
        epoch, done, order = self._resume
        return epoch, self._batches_in(done), self._draw() if order is None else order

    def _batches_in(self, done: int) -> int:
        step = self._plan.batch_size * self._plan.world_size
        if done < 0 or done % step:
            raise ValueError(
                f"load_state_dict: {done} samples are done, which is not a multiple of batch_size * world_size = {step}"
            )
        return done // step

    def _draw(self) -> np.ndarray | None:
        """What a user's order gives for the next epoch. It is asked once: what it draws stays until the epoch
        begins."""
        own, epoch = self._plan.own_order, self._next_epoch
        if own is None:
            return None
        if own.lasting:
            return own.draw(epoch)
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = epoch, own.draw(epoch)
        return self._drawn[1]

    def _set_apart(self) -> None:
        """Lets a pass in progress continue alongside the next one, with workers of its own. One over resident images
        ends, since otherwise the next would decode all of them again."""
        last = self._last
        if self._pass == 0 or last is None:
            return
        if last.resident:
            self._end_pass()
            return
        if last is self._plan:
            self._adopt(Plan(last.arguments, last.core.again(), last.custom, last), last, ordered=True)
        self._apart[self._pass] = last
        self._pass, self._last = 0, None

    def _runs(self, number: int) -> bool:
        """True if that pass has not ended."""
        return number == self._pass or number in self._apart

    def _end(self, number: int) -> None:
        """Ends that pass."""
        if number == self._pass:
            self._end_pass()
        elif number in self._apart:
            self._apart[number].core.close()
            del self._apart[number]

    def _end_pass(self) -> None:
        """Stops the pass in progress, if any. One whose settings have been changed meanwhile is dropped altogether."""
        if self._pass == 0 or self._last is None:
            return
        if self._last is self._plan:
            self._last.core.stop()
        else:
            self._last.core.close()
            self._last = None
        self._pass = 0

    def __len__(self) -> int:
        """The batches of a whole epoch on this rank. With a user's order whose length is known only once it is drawn,
        it is that of the epoch in progress, or of the next one."""
        own = self._plan.own_order
        if own is None:
            return self._core.batches(self._plan.num_samples)
        if self._pass != 0 and self._last is self._plan:
            return self._total
        known = own.known_length()
        if known is None:
            drawn = self._draw()
            known = 0 if drawn is None else len(drawn)
        return self._core.batches(known)

    def next_traversal_order(self) -> np.ndarray:
        """The sample numbers of the next epoch in order, for all ranks, int64."""
        drawn = self._draw()
        return self._order_of(self._next_epoch) if drawn is None else drawn.copy()

    def _order_of(self, epoch: int) -> np.ndarray:
        own = self._plan.own_order
        return self._core.order(check_epoch(epoch)) if own is None else own.draw(check_epoch(epoch))

    @property
    def traversal_order(self) -> Any:
        """An object with `indices` and `sample_order(epoch)`, as with FFCV: the user's own order, if it is such an
        object."""
        own = self._plan.own_order
        mine = getattr(own.source, "__self__", None) if own is not None else None
        return mine if hasattr(mine, "sample_order") else OrderInForce(self)

    def get_batch(self, ids: Any, epoch: int | None = None, evaluate: bool | None = None) -> tuple:
        """One batch of these samples, as the epoch (default: the current one) would make them, apart from any pass."""
        if epoch is None:
            epoch = max(self._next_epoch - 1, 0)
        plan = self._plan
        neutral = plan.evaluate if evaluate is None else bool(evaluate)
        arrays, ids = plan.core.gather(as_ids(ids, "ids", plan.core.in_file), check_epoch(epoch), neutral)
        return plan.finish(arrays, ids, epoch, neutral)

    def filter(self, field_name: str, condition: Callable[[Any], bool]) -> Loader:
        """A Loader over the samples for whose value `condition` holds.

        `condition` is called once per sample with its row of the field's output, with random operations neutral. The
        new Loader's `indices` are sample numbers of the file, also if this one has indices.
        """
        names = [output.name for output in self.outputs]
        if field_name not in names:
            raise ValueError(f"filter: no output is named {field_name!r}; there are {', '.join(names)}")
        self._opened.check()
        pipelines = dict(self.pipelines)
        only = {name: pipelines.get(name, ()) if name == field_name else None for name in [*names, *pipelines]}
        changes = {"pipelines": only, "order": OrderOption.SEQUENTIAL, "order_kwargs": None, "drop_last": False}
        changes |= {"ids": True, "distributed": False, "rank": 0, "world_size": 1, "seed": self.seed, "evaluate": True}
        changes |= {"arrays": "numpy"}
        chosen: list[int] = []
        with Loader(**{**self._plan.arguments, **changes}) as scan:
            for values, ids in scan:
                for value, number in zip(_rows(values, len(ids)), ids.tolist(), strict=True):
                    with noted(f"filter: the condition was asked about sample {number}"):
                        if condition(value):
                            chosen.append(number)
        given = {**self._settled(), "indices": np.array(chosen, dtype=np.int64)}
        found = _again(type(self), given)
        vars(found).update(self._of_subclass())
        return found

    def _settled(self) -> dict[str, Any]:
        """The arguments of a Loader that does the same, wherever and whenever it is made."""
        return {**self._plan.arguments, "seed": self.seed, "arrays": self._plan.arrays_in_force}

    def _of_subclass(self) -> dict[str, Any]:
        """The attributes that a subclass has added."""
        return {name: value for name, value in vars(self).items() if name not in self._names}

    # ---- state ----

    def state_dict(self) -> dict[str, Any]:
        """The position of the loader, as plain numbers, strings and lists: after load_state_dict, iterating continues
        with the batch that comes next, bit for bit. Within a loop, that is the one after the batch in hand. With a
        user's order the state holds the samples of the epoch that has begun; it does not cover what the order draws
        later."""
        plan, epoch, done, ids = self._position()
        state = {"version": 1, "epoch": epoch, "samples_done": done, "seed": plan.seed, **plan.identity()}
        if ids is not None:
            state["samples"] = ids.tolist()
        return state

    def _position(self) -> tuple[Plan, int, int, np.ndarray | None]:
        """The plan, epoch, samples done and, with a user's order, all samples of the epoch in progress or next."""
        if self._resume is not None:
            return self._plan, *self._resume
        last = self._last
        epoch, batch = (None if last is None else last.core.position()) or (self._next_epoch, 0)
        if last is None or (batch == 0 and (self._pass == 0 or epoch == self._next_epoch)):
            drawn = self._drawn if self._drawn is not None and self._drawn[0] == self._next_epoch else None
            self._core.position()  # raises if the Loader has been closed
            return self._plan, self._next_epoch, 0, None if drawn is None else drawn[1]
        return last, epoch, batch * last.batch_size * last.world_size, self._left_ids

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where state_dict was called, also with another number of workers or ranks, or another batch size if
        the samples done are whole batches of it. Raises ValueError if the state does not fit."""
        plan = self._plan
        missing = [name for name in ("epoch", "samples_done", "seed") if name not in state]
        if missing:
            raise ValueError(f"load_state_dict: the state has no {', '.join(missing)}")
        for name, expected in {"version": 1, **plan.identity()}.items():
            if name in ("indices", "window_pages") and name not in state:
                continue  # of an earlier version
            if state.get(name) != expected:
                raise ValueError(f"load_state_dict: {name} is {state.get(name)!r} in the state, but {expected!r} here")
        epoch, done = int(state["epoch"]), int(state["samples_done"])
        self._batches_in(done)
        resume = check_epoch(epoch), done, self._samples_of(state, done)
        self._end_pass()
        plan.reseed(state["seed"], self)
        self._last = self._drawn = None
        self._resume, self._next_epoch = resume, epoch

    def _samples_of(self, state: Mapping[str, Any], done: int) -> np.ndarray | None:
        """The samples of the state's epoch, if a user's order gave them."""
        own = self._plan.own_order
        if own is None:
            return None
        if state.get("samples") is None:
            if done == 0:
                return None
            raise ValueError(
                "load_state_dict: the state does not hold the samples of its epoch, which an order of your own gave: "
                "begin that epoch again"
            )
        ids = as_ids(state["samples"], "load_state_dict: samples", self._core.in_file)
        if done > len(ids):
            raise ValueError(f"load_state_dict: {done} samples are done of an epoch of {len(ids)}")
        if len(own.restrict(ids)) != len(ids):
            raise ValueError("load_state_dict: the state has samples that are not among this loader's indices")
        return ids

    def stats(self) -> dict[str, Any]:
        """Counts, seconds (of the consumer: waited, and spent in steps on whole batches; of all workers: worked, idle,
        and, of their work, in the JPEG decoder, cropping and resampling images, and in other work on images), batch
        buffers (slots) and bytes of memory; since a setting was last changed, or a pass begun alongside another."""
        return {**self._core.stats(), "step_seconds": self._plan.step_seconds}

    def explain(self) -> str:
        """What is done to each sample and each batch, where, and how much memory it takes: a text to print."""
        return NotebookText(explain(self._plan))

    def __reduce__(self) -> tuple:
        """A copy, or what another process unpickles, is a loader of its own with the same settings and seed, before its
        next epoch. (state_dict has its position within an epoch.) A subclass's __init__ is not called for it; the
        attributes that the subclass has added are copied. BetonError where another file has the name by now."""
        self._opened.check()
        given = self._settled()
        plain = {"pipelines": dict(given["pipelines"]), "order_kwargs": dict(given["order_kwargs"])}
        return _again, (type(self), {**given, **plain}, self._next_epoch), self._of_subclass()

    # ---- the end ----

    def close(self) -> None:
        """Stops the threads and closes the file; batches in hand stay valid. May be called twice."""
        self._pass = 0
        for number in list(self._apart):
            self._end(number)
        for plan in {id(plan): plan for plan in (self._plan, self._last) if plan is not None}.values():
            plan.core.close()
        if self._reader is not None:
            self._reader.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _repr_html_(self) -> str:
        closed = self._core.closed
        text = html.escape(repr(self) if closed else self.explain())
        reader = None
        if not closed:
            with contextlib.suppress(OSError, BetonError):  # its file is gone, or another one
                reader = self.reader
        return as_html(f"<pre>{text}</pre>", reader)

    def __repr__(self) -> str:
        return (
            f"Loader({self.fname!r}, batch_size={self.batch_size}, outputs={[output.name for output in self.outputs]})"
        )
