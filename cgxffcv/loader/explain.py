"""What a Loader does, in words: stages, buffers, bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cgxffcv.pipeline.steps import called
from cgxffcv.wording import counted, size

if TYPE_CHECKING:
    from cgxffcv.loader.settings import Plan


def _header(plan: Plan) -> str:
    order = type(plan.own_order.source).__name__ if plan.own_order else plan.order_option.name
    ranks = f" on each of {counted(plan.world_size, 'rank')}" if plan.world_size > 1 else ""
    return (
        f"{plan.sources}: {counted(plan.num_samples, 'sample')} in use, batches of {plan.batch_size}{ranks}, "
        f"order {order}, seed {plan.seed}"
    )


def explain(plan: Plan) -> str:
    arrays, _ = plan.core.gather(np.zeros(0, np.int64), 0, True)  # of no samples: shapes and types
    lines, column = [_header(plan)], 0
    for output in plan.outputs:
        mine = arrays[column : column + len(output.columns)]
        column += len(output.columns)
        for array in mine:
            row = int(np.prod(array.shape[1:], dtype=np.int64)) * np.dtype(array.dtype).itemsize
            lines.append(f"  {output.name}: {array.dtype} {array.shape[1:]}, {size(row)} per sample")
        if not mine:
            lines.append(f"  {output.name}: values of any length")
        if output.worker:
            lines.append(f"    each sample, in a worker: {' > '.join(map(called, output.worker))}")
        if output.moved is not None:
            what = f", which then does {' > '.join(map(called, output.there))}" if output.there else ""
            lines.append(f"    each batch, when it is made: its copy to GPU {output.moved.gpu}{what}")
        if output.why is not None:
            lines.append(f"    not done on the GPU: {output.why}")
        if output.steps:
            lines.append(f"    each batch, in the thread that iterates: {' > '.join(map(called, output.steps))}")
    stats = plan.core.stats()
    lines += [
        f"  {counted(plan.num_workers, 'worker')}, {counted(plan.batches_ahead, 'batch')} ahead",
        f"  {counted(stats['slots'], 'buffer')} of {size(stats['slot_bytes'])} for batches",
        f"  {size(stats['memory_bytes'])} of memory in all, {size(stats['memory_peak_bytes'])} at most so far",
    ]
    if stats["device_slots"] or stats["device_bytes"]:
        lines.append(f"  {counted(stats['device_slots'], 'buffer')} on the GPU, {size(stats['device_bytes'])} in all")
    if plan.resident:
        lines.append("  decoded images stay in memory (resident)")
    return "\n".join(lines)
