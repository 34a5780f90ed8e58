"""A Loader's settings: checked together, and turned into a core that carries them out."""

from __future__ import annotations

import hashlib
import operator
import os
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import _cgxffcv
import numpy as np

from cgxffcv.loader.orders import OrderOption, OwnOrder, as_ids, choose_order
from cgxffcv.loader.ranks import choose_ranks
from cgxffcv.loader.sources import Sources
from cgxffcv.pipeline.compile import Output, choose_arrays, compile_outputs
from cgxffcv.pipeline.later import Pass
from cgxffcv.pipeline.moves import moved_to
from cgxffcv.wording import brief, counted, whole_number

if TYPE_CHECKING:
    from cgxffcv.fields.base import Field
    from cgxffcv.loader.loader import Loader

LARGEST_SEED = 2**64 - 1
# FFCV's variable, which cluster scripts set; as in FFCV, its value when the package is imported counts.
OS_CACHE = os.environ.get("FFCV_DEFAULT_CACHE_PROCESS", "0").strip() in ("", "0")


def warn(text: str) -> None:
    """Warns at the place outside this package that led here."""
    level, frame = 1, sys._getframe()
    while frame is not None and str(frame.f_globals.get("__name__")).startswith("cgxffcv."):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)


def choose_seed(seed: int | None, world_size: int, order: Any) -> int:
    if seed is None and world_size > 1:
        if order is not OrderOption.SEQUENTIAL:
            warn("no seed was given on several ranks, which must agree on one: using 0")
        return 0
    if seed is None:
        return int(np.random.randint(0, np.iinfo(np.int32).max))  # so that numpy.random.seed decides, as with FFCV
    seed = whole_number(seed, "seed")
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"seed must be in 0..2**64-1, not {seed}")
    return seed


NUMBERS = ("batch_size", "num_workers", "batches_ahead", "seed", "rank", "world_size")


def copied(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Copies what the user may go on changing; what is given back cannot be changed. Numbers become Python's, because
    states are made of them."""
    for name in ("pipelines", "custom_fields", "order_kwargs"):
        if arguments[name] is not None and not isinstance(arguments[name], Mapping):
            raise TypeError(f"{name} must be a dict or None, not {brief(arguments[name])}")
    pipelines = arguments["pipelines"] or {}
    fixed = {name: tuple(steps) if isinstance(steps, list) else steps for name, steps in pipelines.items()}
    kwargs = MappingProxyType(dict(arguments["order_kwargs"] or {}))
    numbers = {name: operator.index(arguments[name]) for name in NUMBERS if hasattr(arguments[name], "__index__")}
    return {**arguments, **numbers, "pipelines": MappingProxyType(fixed), "order_kwargs": kwargs}


def same_columns(some: Sequence[Output], others: Sequence[Output]) -> bool:
    try:
        return [output.columns for output in some] == [output.columns for output in others]
    except ValueError:  # comparing different arrays has no plain answer
        return False


class Plan:
    """All settings of a Loader at one time. `arguments` are what the user gave, of which `changed` was not so `before`;
    the other attributes follow from them. A pass keeps its plan when the Loader gets another one."""

    def __init__(
        self,
        arguments: Mapping[str, Any],
        core: _cgxffcv.Loader,
        custom: Mapping[str, Field],
        before: Plan | None,
        changed: str | None = None,
    ):
        self.core, self.custom, self.arguments = core, custom, copied(arguments)
        given = self.arguments
        self.sources = Sources(given["fname"], core.firsts)
        if before is None or changed in ("arrays", "pipelines"):
            self.arrays_in_force = choose_arrays(given["arrays"], given["pipelines"])
        else:  # whatever the program has imported meanwhile
            self.arrays_in_force = before.arrays_in_force
        self.rank, self.world_size = choose_ranks(given["distributed"], given["rank"], given["world_size"])
        drawn = before is not None and before.arguments["seed"] is None and before.world_size == 1
        if drawn and given["seed"] is None and self.world_size == 1:
            self.seed = before.seed
        else:
            self.seed = choose_seed(given["seed"], self.world_size, given["order"])
        self.batch_size, self.batches_ahead = given["batch_size"], given["batches_ahead"]
        if isinstance(self.batches_ahead, (int, np.integer)) and self.batches_ahead < 1:
            raise ValueError(f"batches_ahead must be at least 1, not {self.batches_ahead}")
        for name in ("distributed", "drop_last", "ids", "evaluate", "os_cache", "resident"):
            setattr(self, name, bool(given[name]))
        self.chosen = None if given["indices"] is None else as_ids(given["indices"], "indices", core.in_file).copy()
        given["indices"] = self.chosen  # the user's own may change, and a later setting must not bring that in
        if self.on_error not in ("raise", "zero", "skip"):
            raise ValueError(f"on_error must be 'raise', 'zero' or 'skip', not {self.on_error!r}")
        self._indices: np.ndarray | None = None
        self.step_seconds = 0.0  # spent in steps on whole batches
        self.num_samples = core.in_file if self.chosen is None else len(self.chosen)
        self.outputs: list[Output] = []
        self.moved_to: int | None = None
        self.order_option, self.own_order, self.window = OrderOption.SEQUENTIAL, None, 8

    def __getattr__(self, name: str) -> Any:
        """A setting that is used as it was given."""
        try:
            return self.__dict__["arguments"][name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def num_workers(self) -> int:
        given = self.arguments["num_workers"]
        return given if given > 0 else len(os.sched_getaffinity(0))

    @property
    def indices(self) -> np.ndarray:
        """The samples in use; not to be written to."""
        if self._indices is None:
            self._indices = np.arange(self.num_samples) if self.chosen is None else self.chosen
            self._indices.flags.writeable = False
        return self._indices

    def choose_order(self, loader: Loader) -> None:
        """Calls a class given as the order, which may look at the loader."""
        order, kwargs = self.arguments["order"], dict(self.arguments["order_kwargs"])
        self.order_option, source, self.window = choose_order(order, kwargs, loader)
        self.own_order = None if source is None else OwnOrder(source, self.chosen, self.core.in_file)

    def choose_page_locked(self) -> int | None:
        """The GPU for which batches are in page-locked memory: the one given, or the first to which a pipeline moves
        them."""
        given = self.arguments["page_locked"]
        if given is True:
            raise TypeError("Loader: page_locked is the number of a GPU, None or False, not True")
        moves = (output.gpu for output in self.outputs if output.gpu is not None)
        self.page_locked = next(moves, None) if given is None else None if given is False else given
        return self.page_locked

    def compile(self) -> list[Output]:
        fields, path_of = self.core.fields(), self.sources.path_of
        dtypes = self.core.dtypes()
        return compile_outputs(
            fields, self.arguments["pipelines"], path_of, self.custom, self.arrays_in_force, dtypes, self.core.values
        )

    def outdated(self) -> bool:
        """True if the pipelines' decoders and transforms have other values now than when the core was prepared, or if
        torch's current GPU, to which they move batches, is another one."""
        outputs = self.compile()
        return moved_to(outputs) != self.moved_to or not same_columns(self.outputs, outputs)

    def prepare(self, loader: Loader, ordered: Plan | None = None) -> None:
        """Checks everything that is left, and prepares the core. ordered: a plan whose order is kept."""
        if ordered is None:
            self.choose_order(loader)
        else:
            self.order_option, self.own_order, self.window = ordered.order_option, ordered.own_order, ordered.window
        self.outputs = self.compile()
        self.moved_to = moved_to(self.outputs)
        self.core.prepare(
            [column for output in self.outputs for column in output.columns],
            self.chosen,
            batch_size=self.batch_size,
            order=self.order_option.name.lower(),
            window_pages=self.window,
            seed=self.seed,
            workers=self.arguments["num_workers"],
            batches_ahead=0 if self.batches_ahead is None else self.batches_ahead,
            world_size=self.world_size,
            rank=self.rank,
            drop_last=self.drop_last,
            resident=self.resident,
            read_ahead=not self.os_cache,
            blank_damaged=self.on_error == "zero",
            skip_damaged=self.on_error == "skip",
            page_locked=self.choose_page_locked(),
            device=self.moved_to or 0,
        )
        self.place_outputs()
        self.batches_ahead = self.core.stats()["batches_ahead"]
        if self.own_order is None and self.num_samples > 0 and self.core.batches(self.num_samples) == 0:
            warn(
                f"one batch of {self.batch_size} on {counted(self.world_size, 'rank')} is not filled by "
                f"{counted(self.num_samples, 'sample')}: "
                "with drop_last=True this Loader gives no batches"
            )

    def place_outputs(self) -> None:
        """Applies what the core has found out: which operations behind a move to a GPU the GPU can do."""
        moves, column = self.core.moves(), 0
        for output in self.outputs:
            output.place(moves[column : column + len(output.columns)])
            column += len(output.columns)

    def reseed(self, seed: int | None, loader: Loader) -> None:
        self.seed = choose_seed(seed, self.world_size, self.arguments["order"])
        self.core.reseed(self.seed)
        self.arguments["seed"] = self.seed
        if isinstance(self.arguments["order"], type):
            self.choose_order(loader)

    def finish(self, arrays: tuple, ids: np.ndarray, epoch: int, evaluate: bool) -> tuple:
        """Takes a batch of the core through the steps that are left for Python."""
        entries, column, when = [], 0, Pass(self.seed, epoch, evaluate)
        start = time.perf_counter()
        for output in self.outputs:
            width = len(output.columns)
            entries.append(output.finish(arrays[column : column + width], ids, when))
            column += width
        self.step_seconds += time.perf_counter() - start
        if self.ids:
            entries.append(ids.copy())  # the program's own, to write to; torch.from_numpy warns of what is read-only
        return tuple(entries)

    def identity(self) -> dict[str, Any]:
        """What decides which samples an epoch has, and in which order: a state fits only if it is the same."""
        known = "all" if self.chosen is None else hashlib.sha256(self.chosen.tobytes()).hexdigest()[:32]
        identity = {
            "order": self.order_option.name if self.own_order is None else "CUSTOM",
            "num_samples": self.num_samples,
            "indices": known,
        }
        if len(self.sources.paths) > 1:
            identity["firsts"] = list(self.sources.firsts)
        if self.order_option is OrderOption.QUASI_RANDOM:
            identity["window_pages"] = operator.index(self.window)
        return identity


class Setting:
    """An attribute of Loader that may be assigned: checked at once, and in force from the next epoch on."""

    def __init__(self, doc: str = ""):
        self.__doc__ = doc

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, loader: Loader | None, owner: type) -> Any:
        return self if loader is None else getattr(loader._plan, self.name)

    def __set__(self, loader: Loader, value: Any) -> None:
        loader._change(self.name, value)
