"""Compiles the pipelines that a user writes to outputs of the C loader and the steps left for Python."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from _cgxffcv import BetonError

from cgxffcv import decoders as dec
from cgxffcv import transforms as tf
from cgxffcv.device import why_none
from cgxffcv.fields.base import MAX_NAME, Field
from cgxffcv.interop.torch import FromGPU, find_torch, loaded_torch, to_bfloat16, without_gradients
from cgxffcv.lengths import taken
from cgxffcv.pipeline.given import Derived, as_known
from cgxffcv.pipeline.later import PIXELS, NormalizeBatch, OperateOnBatch, Pass, core_operation
from cgxffcv.pipeline.moves import (
    Moved,
    can_follow,
    choose_moves,
    move_of,
    moved_steps,
    moves_last,
    refuse_types,
    settle_moves,
    torch_moves,
)
from cgxffcv.pipeline.operation import RunOperation
from cgxffcv.pipeline.refusals import refuse_late, refuse_second_turn
from cgxffcv.pipeline.steps import (
    DecodeField,
    OnValues,
    ParseJSON,
    ReadValues,
    Values,
    called,
    split_lengths,
    to_channels_last,
)
from cgxffcv.wording import add_note, brief, counted, whole_number

DEFAULT_DECODERS = {
    "int": dec.IntDecoder,
    "float": dec.FloatDecoder,
    "image": dec.SimpleRGBImageDecoder,
    "bytes": dec.BytesDecoder,
    "json": dec.BytesDecoder,
    "array": dec.NDArrayDecoder,
    "tensor": dec.NDArrayDecoder,
}
MAX_STEPS = 1024  # of a pipeline
MAX_SHARED = 64  # numbers of lists of draws: the format of a draw's index (csrc/augment/draw.h)


class PipelineSpec:
    """One output: which field, its decoder (None: the field's own), its transforms (or None).

    `draws` numbers the list of random draws of an image output: outputs with the same number (0..63) share their draws,
    as an image and its mask should; by default every image output has its own number.
    """

    def __init__(
        self,
        source: str | None = None,
        decoder: Any = None,
        transforms: Sequence | None = None,
        draws: int | None = None,
    ):
        if draws is not None and not 0 <= whole_number(draws, "draws") < MAX_SHARED:
            raise ValueError(f"draws must be in 0..{MAX_SHARED - 1}, not {draws!r}")
        transforms = () if transforms is None else transforms
        if isinstance(transforms, str) or not hasattr(transforms, "__iter__"):
            raise TypeError(f"PipelineSpec: transforms must be a list of operations, not {brief(transforms)}")
        too_many = f"a pipeline has at most {MAX_STEPS} steps, not "
        steps = taken(transforms, MAX_STEPS, lambda: too_many + brief(transforms))
        self.source, self.decoder, self.transforms, self.draws = source, decoder, steps, draws

    def __repr__(self) -> str:
        return f"PipelineSpec({self.source!r}, {self.decoder!r}, {self.transforms!r}, draws={self.draws})"


def described(value: Any) -> str:
    """Describes what a step was given."""
    if isinstance(value, tuple):
        return f"({', '.join(map(described, value))})"
    shaped = hasattr(value, "dtype") and hasattr(value, "shape")
    return f"{value.dtype} {tuple(value.shape)}" if shaped else f"a {type(value).__name__}"


def in_samples(ids: np.ndarray) -> str:
    shown = ", ".join(map(str, ids[:8].tolist())) + (", ..." if len(ids) > 8 else "")
    return f"{counted(len(ids), 'sample')} ({shown})"


@dataclass
class Output:
    """One entry of a batch: its columns of the C loader, and what Python does to them. Every step gets the result of
    the one before it and the batch's sample numbers; some also get what the pass draws from."""

    name: str
    columns: list[dict[str, Any]]
    steps: list[Callable] = field(default_factory=list)
    worker: list[Any] = field(default_factory=list)  # decoder and transforms that the core carries out
    moved: Moved | None = None  # if the core can, or (once it is ready) does, bring the batches to a GPU
    there: list[Any] = field(default_factory=list)  # transforms that the GPU carries out
    why: str | None = None  # why the GPU does not carry out what follows the move

    @property
    def gpu(self) -> int | None:
        """Where its first ToDevice moves the batches, if that is a GPU of this machine."""
        if self.moved is not None:
            return self.moved.gpu
        steps = (getattr(step, "step", None) for step in self.steps)
        return next((step.gpu for step in steps if isinstance(step, tf.ToDevice)), None)

    def place(self, moves: Sequence[tuple[int, str | None]]) -> None:
        """Applies what the core, which is ready, says about its columns: 1, it moves what the threads have made, 2, the
        GPU works on that; and why it does not."""
        if self.moved is None:
            return
        ((how, why),) = moves
        self.why = why or self.why
        if how == 0:
            self.moved = None
            return
        self.steps = self.moved.steps
        if how == 2:
            self.worker, self.there = self.moved.worker, self.moved.there

    def finish(self, arrays: Sequence, ids, when: Pass) -> Any:
        value = arrays[0] if len(arrays) == 1 else tuple(arrays)
        with without_gradients() if self.steps else contextlib.nullcontext():
            for step in self.steps:
                value = self.perform(step, value, ids, when)
        return value

    def perform(self, step: Callable, value: Any, ids, when: Pass) -> Any:
        """Performs one step; an exception gets a note that says where it happened and on which samples."""
        try:
            made = step(value, ids, when) if isinstance(step, OperateOnBatch) else step(value, ids)
            if made is None:
                raise TypeError("the step returned nothing: it must return the batch")
            return made
        except BetonError:  # names its sample itself
            raise
        except Exception as error:
            raised = RuntimeError("the step raised StopIteration") if isinstance(error, StopIteration) else error
            add_note(
                raised,
                f"pipeline '{self.name}', step {called(step)}, on {described(value)}, {in_samples(ids)}; "
                "get_batch([NUMBER]) makes a batch of a single sample",
            )
            if raised is not error:  # which would end a loop as if there were no more batches
                raise raised from error
            raise


@dataclass
class ImageCompiler:
    """Walks the transforms of one image output: what can be fused goes to C, the rest becomes steps on batches."""

    name: str
    draws: int
    operations: list[tuple[tf.ImageOperation, bool]] = field(default_factory=list)  # with: after normalisation?
    normalize: tf.NormalizeImage | None = None
    source: str = "uint8"  # what the pixels are in the file
    torch_image: tf.ToTorchImage | None = None
    functions: list[tf.SampleFunction] = field(default_factory=list)
    tensor: bool = False
    device: tf.ToDevice | None = None
    moves: int = 0
    front: int | None = None  # operations before the first move, if nothing else is before it
    steps: list[Callable] = field(default_factory=list)

    def __post_init__(self):
        self.type = self.source

    def add(self, step) -> None:
        if isinstance(step, tf.RandomResizedCrop):
            raise TypeError(
                f"pipeline '{self.name}': {step!r} must come first, after SimpleRGBImageDecoder or "
                "NDArrayDecoder; RandomCrop may follow others"
            )
        if isinstance(step, tf.LabelOperation):
            raise TypeError(f"pipeline '{self.name}': {step!r} is for fields of int, not image")
        if isinstance(step, tf.SampleFunction):
            self.add_function(step)
        elif self.later and isinstance(step, tf.NormalizeImage):
            self.steps.append(NormalizeBatch(step, 1 if self.planes else 3))
        elif self.later and isinstance(step, tf.ImageOperation):
            self.add_later(step)
        elif isinstance(step, (tf.ImageOperation, tf.NormalizeImage)):
            (self.add_operation if isinstance(step, tf.ImageOperation) else self.add_normalize)(step)
        elif self.steps or (self.functions and not isinstance(step, (tf.ToTensor, tf.ToDevice))) or not self.fuse(step):
            self.steps.append(as_step(self.name, step))

    @property
    def later(self) -> bool:
        """True if what comes now works on whole batches."""
        return bool(self.steps or self.functions)

    def add_function(self, step: tf.SampleFunction) -> None:
        """Adds a C function, which works on what the core makes, before anything is done to whole batches."""
        before = [self.torch_image, *(tf.ToTensor(),) * self.tensor, self.device, *self.steps]
        refuse_late(self.name, step, next((other for other in before if other is not None), None))
        self.functions.append(step)

    @property
    def planes(self) -> bool:
        """True if the batch has its channels first by now."""
        later = (isinstance(getattr(step, "step", None), tf.ToTorchImage) for step in self.steps)
        return self.torch_image is not None or any(later)

    def add_later(self, step) -> None:
        """Adds an operation after a user's step: it works on whole batches, which must still be arrays of pixels."""
        done = [self.normalize, self.torch_image, *(tf.ToTensor(),) * self.tensor, self.device]
        done += [getattr(own, "step", None) for own in self.steps]
        built_in = [other for other in done if isinstance(other, tf.Transform)]
        if built_in or step.phase == "mix" or self.type != self.source:
            other = next(iter([*built_in, *self.functions, *self.steps]))
            raise TypeError(
                f"pipeline '{self.name}': {step!r} must come before {other!r}; only a step of your own that gives "
                "arrays of pixels may come before an operation on images, other than one that mixes a batch"
            )
        if not self.steps or not isinstance(self.steps[-1], OperateOnBatch):
            later = [own for part in self.steps if isinstance(part, OperateOnBatch) for own in part.operations]
            before = [*(operation for operation, _ in self.operations), *later]
            self.steps.append(OperateOnBatch(self.name, self.draws, before))
        self.steps[-1].operations.append(step)

    def add_operation(self, step) -> None:
        if self.normalize is not None and step.phase != "fill":
            raise TypeError(f"pipeline '{self.name}': {step!r} must come before {self.normalize!r}")
        self.operations.append((step, self.normalize is not None))

    def add_normalize(self, step) -> None:
        if self.normalize is not None:
            raise TypeError(f"pipeline '{self.name}' normalises twice: {self.normalize!r} and {step!r}")
        if self.type != self.source != "uint8":
            raise TypeError(
                f"pipeline '{self.name}': {step!r} must come before Convert, which rounds pixels of {self.source}"
            )
        self.normalize, self.type = step, step.type

    def fuse(self, step) -> bool:
        if isinstance(step, tf.ToTorchImage) and self.torch_image is None:
            self.torch_image = step
        elif isinstance(step, tf.ToTensor):
            self.tensor = True
        elif isinstance(step, tf.ToDevice):
            if self.moves == 0 and self.normalize is None and self.type == self.source and self.torch_image is None:
                self.front = len(self.operations)
            self.device, self.moves = step, self.moves + 1
        elif isinstance(step, tf.Convert):
            return self.fuse_convert(step.target_dtype)
        else:
            return False
        return True

    def fuse_convert(self, target: str) -> bool:
        """From uint8 every type is exact; after normalisation one further rounding can be fused, from the type it gave.
        For other pixels one conversion can be fused."""
        if target == self.type:
            return True
        if target not in (*tf.FLOATS, self.source):
            return False
        if self.normalize is not None and (self.type != self.normalize.type or target not in tf.FLOATS):
            return False
        if self.normalize is None and self.type != self.source != "uint8":
            return False
        self.type = target
        return True

    def image(self, tensors: bool = True) -> dict[str, Any]:
        """What the C loader does to the pixels. `tensors`: their memory order may differ from their shape."""
        normalize = self.normalize
        planar = self.torch_image is not None and not (tensors and self.torch_image.channels_last)
        return {
            "operations": tuple(core_operation(step, self.draws, after) for step, after in self.operations),
            "normalize": normalize and {"mean": normalize.mean, "std": normalize.std, "type": normalize.type},
            "type": self.type,
            "layout": "chw" if planar else "hwc",
        }

    def all_steps(self) -> list[Callable]:
        first: list[Callable] = []
        if self.torch_image is not None and self.torch_image.channels_last:
            first.append(to_channels_last)
        if self.tensor and find_torch() is not None:
            bits = self.type == "bfloat16" and all(step.dtype is None for step in self.functions)
            first.append(to_bfloat16 if bits else tf.ToTensor())
        if self.device is not None and self.device.device != "cpu":
            first.append(self.device)
        return moves_last(self.name, [OnValues(step) for step in first] + self.steps)

    def obstacle(self) -> str | None:
        """Why nothing after a move is done on a GPU, as far as this is known before the core is asked."""
        if self.device is None or self.device.device == "cpu":
            return None
        if self.moves > 1:
            return "the batch moves more than once"
        if self.device.gpu is None:
            return f"{self.device!r}: {why_none() or 'that is not a GPU of this machine'}"
        if self.functions:
            return f"{self.functions[0]!r} makes rows in the workers"
        return "before the move, pixels are no longer as in the file" if self.front is None else None

    def move(self, column: dict[str, Any], worker: Sequence, there: Sequence) -> Moved | None:
        """What the core may do: all of it, with arrays; with torch's tensors, which torch moves itself, only if there
        is work after the move."""
        if self.device is None or self.moves != 1 or self.device.gpu is None:
            return None
        torch = not self.device.comes_last
        if not (self.tensor and torch_moves(self.device) if torch else can_follow(self.steps)):
            return None
        image, steps = self.image(tensors=torch), list(self.steps)
        if torch and self.torch_image is not None and self.torch_image.channels_last:
            steps.insert(0, OnValues(tf.ToTorchImage()))
        if torch:
            follow, wait = self.device.device == "cuda", not self.device.non_blocking
            steps.insert(0, OnValues(FromGPU(self.type == "bfloat16", follow, wait)))
        done = self.front or 0
        more = image["operations"][done:] or image["normalize"] or self.type != "uint8" or image["layout"] == "chw"
        process = self.front is not None and not self.functions and bool(more)
        move = move_of(image["operations"][:done], process, only_if_processed=torch)
        return Moved(self.device.gpu, {**column, "image": image, "move": move}, steps, list(worker), list(there))


def as_step(name: str, step) -> Callable:
    """A callable on (values, sample numbers): unchanged if its attribute `with_indices` says that it takes both."""
    if isinstance(step, type):
        raise TypeError(f"pipeline '{name}': {step.__name__} is a class: write {step.__name__}(...)")
    operation = step.given if isinstance(step, Derived) else step
    if hasattr(operation, "generate_code"):
        return RunOperation(operation)
    if isinstance(step, (dec.Decoder, PipelineSpec)) or not callable(step):
        raise TypeError(f"pipeline '{name}': {step!r} is not a transform and cannot be called on a batch")
    return step if getattr(step, "with_indices", False) else OnValues(step)


def split_decoder(name: str, kind: str, spec: PipelineSpec, own: Field | None) -> tuple[dec.Decoder, list]:
    """The decoder given, or heading the transforms, or the field's own; and the transforms. `own`: a user's field."""
    decoder, transforms = spec.decoder, as_known(spec.transforms)
    if decoder is None and transforms and isinstance(transforms[0], dec.Decoder):
        decoder = transforms.pop(0)
    if decoder is None:
        decoder = DEFAULT_DECODERS[kind]() if own is None else own.get_decoder_class()()
    if isinstance(decoder, type):
        raise TypeError(f"pipeline '{name}': {decoder.__name__} is a class: write {decoder.__name__}()")
    if hasattr(decoder, "generate_code"):
        raise TypeError(
            f"pipeline '{name}': generate_code of {type(decoder).__name__} would not be called, as nothing is compiled "
            "here: put an Operation after the decoder, or use FunctionDecoder, or FieldDecoder for a field of your own"
        )
    if not isinstance(decoder, dec.Decoder):
        raise TypeError(f"pipeline '{name}': {decoder!r} is not a decoder")
    if kind not in decoder.kinds:
        fitting = DEFAULT_DECODERS.get(kind)
        hint = f"; use {fitting.__name__}" if fitting else ""
        raise TypeError(
            f"pipeline '{name}': {decoder!r} reads fields of {' or '.join(decoder.kinds)}, not {kind}{hint}"
        )
    return decoder, transforms


def core_column(
    field: str,
    decoder: str,
    *,
    fast_jpeg: bool = False,
    image: dict[str, Any] | None = None,
    labels: tuple = (),
    function: dict[str, Any] | None = None,
    crop: dict[str, Any] | None = None,
    steps: tuple = (),
    move: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A column as the C loader takes it."""
    return dict(locals())


def leading_labels(transforms: list) -> list[tf.LabelOperation]:
    """What the core does to labels: any operations that replace them, and then one that pairs them; removed from the
    list. ToTensor and ToDevice, which change no value, may come before them."""
    labels: list[tf.LabelOperation] = []
    passed: list[tf.Transform] = []
    while transforms and isinstance(transforms[0], (tf.LabelOperation, tf.ToTensor, tf.ToDevice)):
        step = transforms.pop(0)
        if not isinstance(step, tf.LabelOperation):
            passed.append(step)
            continue
        labels.append(step)
        if step.phase == "label":
            break
    transforms[:0] = passed
    return labels


def leading_functions(name: str, transforms: list, output: Output) -> list:
    """Hands C functions, which work on what the decoder makes, to the core; returns the other transforms."""
    rest: list = []
    for step in transforms:
        if not isinstance(step, tf.SampleFunction):
            rest.append(step)
            continue
        refuse_late(name, step, next(iter([*rest, *output.steps, *output.columns[1:]]), None))
        output.worker.append(step)
        output.columns[0]["steps"] += (step.core_step(),)
    return rest


IMAGE_STEPS = (tf.ImageOperation, tf.NormalizeImage)  # which turn arrays of PIXELS into images


def compile_image(
    name: str,
    source: str,
    decoder: dec.Decoder,
    transforms: Sequence,
    draws: int,
    pixels: str = "uint8",
    crop: tf.RandomResizedCrop | None = None,
) -> Output:
    """`crop`: what comes first, for arrays."""
    compiler, worker = ImageCompiler(name, draws, source=pixels), [decoder, *(() if crop is None else (crop,))]
    before = len(worker)  # how many come before a move
    for step in transforms:
        compiler.add(step)
        if not compiler.steps and not isinstance(step, (tf.ToTensor, tf.ToDevice)):
            worker.append(step)
        before = len(worker) if compiler.moves == 0 else before
    if isinstance(decoder, dec.ImageDecoder):
        code, options = decoder.code, {"fast_jpeg": decoder.jpeg_mode == "fast", "crop": decoder.crop(draws)}
    else:
        rectangle = None if crop is None else crop.decoder("accurate").crop(draws)
        code, options = "array_image", {"crop": rectangle}
    steps = tuple(step.core_step() for step in compiler.functions)
    column = core_column(source, code, image=compiler.image(), steps=steps, **options)
    moved = compiler.move(column, worker[:before], worker[before:])
    why = compiler.obstacle() if worker[before:] else None
    return Output(name, [column], compiler.all_steps(), worker, moved, why=why)


def compile_output(
    name: str,
    kind: str,
    spec: PipelineSpec,
    draws: int,
    path_of: Callable[[int], str],
    own: Field | None,
    dtype: str | None = None,
    read: Values | None = None,
) -> Output:
    """`dtype`: of a field of arrays; `read`: gives values of any length."""
    decoder, transforms = split_decoder(name, kind, spec, own)
    refuse_second_turn(name, transforms)
    source = spec.source or name
    crops = bool(transforms) and isinstance(transforms[0], tf.RandomResizedCrop)
    if crops and isinstance(decoder, dec.SimpleRGBImageDecoder):
        decoder = transforms.pop(0).decoder(decoder.jpeg_mode)
    if isinstance(decoder, dec.ImageDecoder):
        return compile_image(name, source, decoder, transforms, draws)
    if type(decoder) is dec.NDArrayDecoder and (crops or any(isinstance(step, IMAGE_STEPS) for step in transforms)):
        pixels = dtype if dtype in PIXELS else "uint8"  # the core refuses others
        return compile_image(name, source, decoder, transforms, draws, pixels, transforms.pop(0) if crops else None)
    function = None
    if isinstance(decoder, dec.FunctionDecoder):
        function = {"address": decoder.address, "dtype": decoder.dtype, "shape": decoder.shape}
    output = Output(name, [core_column(source, decoder.code, function=function)], worker=[decoder])
    if isinstance(decoder, dec.FieldDecoder):
        output.steps.append(DecodeField(decoder, own, source, path_of, read if own.layout()[2] >= 0 else None))
    if isinstance(decoder, dec.JSONDecoder):
        output.steps.append(ParseJSON(source, path_of))
    if isinstance(decoder, dec.BytesDecoder) and decoder.lengths:
        output.columns.append(core_column(source, "byte_size"))
        output.steps.append(OnValues(split_lengths))
    if isinstance(decoder, dec.BytesDecoder) and decoder.offsets and read is not None:
        output.columns, output.worker, output.steps = [], [], [ReadValues(source, read)]
    if decoder.code == "int":
        labels = leading_labels(transforms)
        output.worker += labels
        output.columns[0] = core_column(source, "int", labels=tuple(core_operation(step, draws) for step in labels))
    for step in leading_functions(name, transforms, output):
        if isinstance(step, tf.LabelOperation):
            why = "labels are replaced, then paired once, before all steps but ToTensor and ToDevice"
            why = why if kind == "int" else f"it is for fields of int, not {kind}"
            raise TypeError(f"pipeline '{name}': {step!r} must come first: {why}")
        of_arrays = isinstance(step, tf.ToTorchImage) and kind in ("array", "tensor")
        if isinstance(step, (*IMAGE_STEPS, tf.RandomResizedCrop, tf.ToTorchImage)) and not of_arrays:
            raise TypeError(f"pipeline '{name}': {step!r} is for images, and the field holds {kind}")
        output.steps.append(as_step(name, step))
    add_move(output, dtype)
    return output


def add_move(output: Output, dtype: str | None) -> None:
    """Has the core move what the threads make, if it can. `dtype`: of a field of arrays."""
    found = moved_steps(output.steps) if len(output.columns) == 1 else None
    if found is not None:
        functions = (step for step in output.worker if isinstance(step, (dec.FunctionDecoder, tf.SampleFunction)))
        refuse_types(output.name, ([dtype] + [step.dtype for step in functions if step.dtype is not None])[-1])
        output.moved = Moved(found[0], {**output.columns[0], "move": move_of()}, found[1])
    output.steps = moves_last(output.name, output.steps)


def as_spec(name: str, pipeline: Any) -> PipelineSpec:
    if isinstance(pipeline, PipelineSpec):
        return pipeline
    if isinstance(pipeline, dec.Decoder):
        return PipelineSpec(decoder=pipeline)
    if isinstance(pipeline, Sequence) and not isinstance(pipeline, (str, bytes)):
        return PipelineSpec(transforms=pipeline)
    raise TypeError(f"pipeline '{name}' must be a list of operations, a PipelineSpec or None, not {pipeline!r}")


def choose_arrays(arrays: str | None, pipelines: Mapping[str, Any]) -> str:
    """What outputs without a pipeline are, and what ToDevice moves where ToTensor is not in its pipeline: "torch" for
    tensors, by default if the program has imported torch or a pipeline has ToTensor; or "numpy"."""
    if arrays not in (None, "numpy", "torch"):
        raise ValueError(f"arrays must be 'numpy', 'torch' or None, not {arrays!r}")
    if arrays == "torch" and find_torch() is None:
        raise ImportError("arrays='torch': torch is not installed")
    if arrays is not None:
        return arrays
    specs = (as_spec(name, pipeline) for name, pipeline in pipelines.items() if pipeline is not None)
    asked = any(isinstance(step, tf.ToTensor) for spec in specs for step in spec.transforms)
    return "torch" if loaded_torch() is not None or (asked and find_torch() is not None) else "numpy"


def add_default(spec: PipelineSpec, tensors: bool) -> PipelineSpec:
    """FFCV's default pipeline is the field's decoder and ToTensor."""
    if not tensors or spec.decoder is not None or spec.transforms:
        return spec
    return PipelineSpec(spec.source, None, [tf.ToTensor()], spec.draws)


def in_file(name: str, fields: Mapping[str, str]) -> str:
    """The name that the file has for a field: the first 16 bytes of a longer one (see DatasetWriter)."""
    return name[:MAX_NAME] if isinstance(name, str) and name not in fields and name[:MAX_NAME] in fields else name


def by_names_in_file(fields: Mapping[str, str], pipelines: Mapping[str, Any]) -> dict[str, Any]:
    """A long name that says itself which field it reads is another output of it, not the field's own name."""
    found: dict[str, Any] = {}
    for name, pipeline in pipelines.items():
        extra = isinstance(pipeline, PipelineSpec) and pipeline.source not in (None, name)
        short = name if extra else in_file(name, fields)
        if short in found:
            raise ValueError(f"pipelines {name!r} and {short!r} are of one field, whose name is {short!r} in the file")
        found[short] = pipeline
    return found


def compile_outputs(
    fields: Mapping[str, str],
    pipelines: Mapping[str, Any],
    path_of: Callable[[int], str],
    custom: Mapping[str, Field] | None = None,
    arrays: str = "numpy",
    dtypes: Mapping[str, str] | None = None,
    read: Values | None = None,
) -> list[Output]:
    """Outputs in the file's order of fields, then those of other names in the order given; None switches one off.
    `path_of` gives the file of a sample, for errors; `arrays` is what `choose_arrays` gave; `dtypes` are those of
    fields of arrays; `read` gives values of any length.

    Raises:
        ValueError: a pipeline for an unknown field. TypeError: an operation that does not fit.
    """
    custom, dtypes = custom or {}, dtypes or {}
    pipelines = by_names_in_file(fields, pipelines)
    order, torch = [*fields, *(name for name in pipelines if name not in fields)], arrays == "torch"
    outputs, images = [], 0
    for name in order:
        pipeline = pipelines.get(name, ())
        if pipeline is None:
            continue
        spec = add_default(as_spec(name, pipeline), torch)
        source = in_file(spec.source or name, fields)
        if source not in fields:
            raise ValueError(f"pipeline '{name}': no field is named '{source}'; the file has {', '.join(fields)}")
        transforms = settle_moves(spec.transforms, torch)
        kind, spec = fields[source], PipelineSpec(source, spec.decoder, transforms, spec.draws)
        draws = images % MAX_SHARED if spec.draws is None else spec.draws
        outputs.append(compile_output(name, kind, spec, draws, path_of, custom.get(source), dtypes.get(source), read))
        if any(column["image"] is not None for column in outputs[-1].columns):
            images += 1
            if images > MAX_SHARED and spec.draws is None:
                raise ValueError(
                    f"pipeline '{name}': only {MAX_SHARED} images have draws of their own: PipelineSpec(draws=)"
                )
    choose_moves(outputs)
    return outputs
