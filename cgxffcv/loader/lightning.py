"""The Loader for Lightning, and for anything that uses data loaders as Lightning does."""

from __future__ import annotations

from collections.abc import Iterator

from cgxffcv import process_info
from cgxffcv.loader import loader

__all__ = ["Loader"]


class Loader(loader.Loader):
    """A `cgxffcv.loader.Loader`, with the same arguments, for `lightning.Trainer.fit(module, Loader(...))`.

    It suits Lightning, which starts its ranks late, looks at loaders beforehand, and says which epoch comes next:

    Each rank takes its part, whatever `distributed` says: that of torch.distributed, or of the launcher, at the time
    when a pass begins or the length is asked for. `rank=0, world_size=1` gives each rank everything. A pass begins with
    the first batch that is asked for; an iterator that nobody uses costs nothing, and no epoch. The epoch is the one
    passed to a sampler's `set_epoch`, so that a resumed training draws what comes next. Its position within an epoch is
    in Lightning's checkpoints (`state_dict`, `load_state_dict`).

    Batches are torch tensors in host memory, which Lightning moves.
    """

    batch_sampler = None  # Lightning looks for one where there is a sampler

    @property
    def sampler(self) -> Loader:
        """The Loader itself, which receives the epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Makes the next pass that of this epoch; one begun by a loaded state continues where the state says."""
        if self._resume is None or self._resume[0] != epoch:
            self.next_epoch = epoch

    def _share(self) -> None:
        here = process_info.or_alone()
        ranks = (here.rank, here.size) if here.size else (0, 1)  # not known yet: everything
        if self._plan.arguments["rank"] is None and ranks != (self.rank, self.world_size):
            self._change("distributed", ranks[1] > 1)

    def __len__(self) -> int:
        self._share()
        return super().__len__()

    def __iter__(self) -> Iterator[tuple]:
        self._share()
        yield from super().__iter__()
