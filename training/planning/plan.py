"""What a training run takes before it is started: memory, steps, time, and the price of the time.

Memory is `memory.py`. Time: with M the parameters that are multiplied with (all but the embedding's table), a
token costs 2 M operations forward and as many for the gradients that pass through; the gradients of what is trained
cost as many as it has forward, so 6 M of `full` (Kaplan et al., 2020, Scaling Laws for Neural Language Models) and 4 M
and 6 T of an adapter with T parameters. Attention adds 4 * (width of the queries) * (tokens attended to) a layer
forward and twice that backward. Gradient checkpointing computes the layers once more (Chen et al., 2016), and the head
is always computed twice, since its logits are not kept. DPO computes the reference forward besides. The operations,
with those that are done twice, over the data sheet's peak times `utilisation` are the seconds; a step is never faster
than its memory can be read. `utilisation` is an assumption until a run on that device measured it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from math import ceil

import msgspec

from training.configuration import InvalidConfiguration, Stage, TrainingConfiguration
from training.inputs import UnusableInput
from training.planning.architecture import Shape, UnknownShape, shape_of
from training.planning.hardware import Gpu, Room, room
from training.planning.memory import Memory, memory, trained, width

# Large runs that were published reached 0.21 to 0.46 of the peak (Chowdhery et al., 2022, PaLM, table 3).
UTILISATION = 0.35
GB, TERA = 1e9, 1e12


class DoesNotFit(UnusableInput):
    """A run that needs more memory than there is; the message has the numbers and what would help."""


class SizeNotChecked(UserWarning):
    """Nobody can tell beforehand whether this model fits; the run goes on."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a run takes. Memory is bytes on each device, `room` what the GPU has; `tokens_per_step` counts all devices;
    `sequences`, `steps`, `tokens`, `operations` and `seconds` are of the whole run, None where the number of tokens is
    not known; `cost` is devices * hours * `price`, None without a price.
    """

    model: str
    stage: Stage
    method: str
    gpu: str
    devices: int
    parameters: int
    trainable: int
    memory: dict[str, int]
    needed: int
    room: int
    fits: bool
    sequences: int | None
    tokens_per_step: int
    steps: int | None
    tokens: int | None
    operations_per_token: float
    operations: float | None
    utilisation: float
    peak: float
    seconds_per_step: float
    seconds: float | None
    price: float | None
    cost: float | None
    notes: tuple[str, ...]


def plan(
    configuration: TrainingConfiguration,
    shape: Shape,
    hardware: Gpu,
    tokens: int | None,
    *,
    samples: int | None = None,
    stage: Stage = "sft",
    devices: int = 1,
    utilisation: float = UTILISATION,
    price: float | None = None,
) -> Plan:
    """What this run takes on `devices` of `hardware`, over a dataset of `tokens` in `samples`.

    Without `samples` they are counted as if they filled `max_length`. `price`: of one device for an hour, in any
    currency. Raises InvalidConfiguration.
    """
    if stage == "dpo" and configuration.packing:
        raise InvalidConfiguration("packing: DPO compares whole answers and packs none: leave it out")
    wide = width(configuration, hardware.bf16 is not None)
    # DPO has two sequences a pair; its tokens are those of both.
    each = 2 if stage == "dpo" else 1
    used = memory(configuration, shape, stage=stage, devices=devices, bf16=hardware.bf16 is not None)
    length = float(configuration.max_length)
    sequences = None if tokens is None else max(1, ceil(tokens / configuration.max_length))
    if tokens is not None and samples and not configuration.packing:
        sequences = samples * each
        length = min(length, max(1.0, tokens / sequences))
    group = configuration.batch_size * configuration.gradient_accumulation * devices * each
    steps = configuration.max_steps
    if steps is None and sequences is not None:
        steps = ceil(configuration.epochs * ceil(sequences / group))
    per_step = round(group * length)
    per_token = operations(configuration, shape, length, stage)
    peak = hardware.bf16 if wide == 2 and hardware.bf16 is not None else hardware.fp32
    computing = per_step * per_token / (devices * peak * TERA * utilisation)
    held = used.weights * devices
    reading = configuration.gradient_accumulation * held * (3 if configuration.gradient_checkpointing else 2)
    of_step = max(computing, reading / (hardware.bandwidth * GB))
    seen = None if steps is None else steps * per_step
    if configuration.max_steps is None and tokens is not None:
        seen = round(tokens * configuration.epochs)
    seconds = None if steps is None else steps * of_step
    return Plan(
        model=shape.name,
        stage=stage,
        method=configuration.method,
        gpu=hardware.name,
        devices=devices,
        parameters=shape.parameters,
        trainable=sum(tensor.numbers for tensor in trained(configuration, shape)),
        memory=asdict(used),
        needed=used.total,
        room=int(hardware.memory * GB),
        fits=used.total <= hardware.memory * GB,
        sequences=sequences,
        tokens_per_step=per_step,
        steps=steps,
        tokens=seen,
        operations_per_token=per_token,
        operations=None if seen is None else seen * per_token,
        utilisation=utilisation,
        peak=peak,
        seconds_per_step=of_step,
        seconds=seconds,
        price=price,
        cost=None if price is None or seconds is None else seconds / 3600 * devices * price,
        notes=tuple(_notes(configuration, hardware)),
    )


def operations(configuration: TrainingConfiguration, shape: Shape, length: float, stage: Stage = "sft") -> float:
    """The floating-point operations that a token of sequences of this length costs, with those that are done twice."""
    layers = 2 * sum(rows * columns for rows, columns in shape.linear().values()) * shape.layers
    attention = 4 * shape.queries * shape.attended(max(1, round(length))) * shape.layers
    head = 2 * shape.vocabulary * shape.hidden
    adapter = 0
    if configuration.method != "full":
        adapter = 2 * sum(tensor.numbers for tensor in trained(configuration, shape))
    forward = layers + attention + head + adapter
    backward = layers + 2 * attention + head + head + 2 * adapter
    if configuration.method == "full":
        backward += layers + head
    again = layers + attention + adapter if configuration.gradient_checkpointing else 0
    reference = layers + attention + head if stage == "dpo" else 0
    return float(forward + backward + again + reference)


def refuse_if_too_large(
    configuration: TrainingConfiguration, *, stage: Stage = "sft", there: Room | None = None
) -> None:
    """Refuse a run that needs more memory than is free here, before any weight is loaded. `there`: None measures it.

    Warns SizeNotChecked of a model or a machine that is not known. Raises DoesNotFit and InvalidConfiguration.
    """
    there = there or room()
    try:
        if there is None:
            raise UnknownShape("the free memory of this machine cannot be told")
        shape = shape_of(configuration.model)
    except UnknownShape as error:
        warnings.warn(SizeNotChecked(f"not checked whether it fits: {error}"), stacklevel=2)
        return
    needed = _of(configuration, shape, stage, there)
    if needed.total > there.free:
        raise DoesNotFit(_refusal(configuration, shape, stage, there, needed))


def _of(configuration: TrainingConfiguration, shape: Shape, stage: Stage, there: Room) -> Memory:
    return memory(configuration, shape, stage=stage, devices=there.devices, bf16=there.bf16, gpu=there.gpu)


def _refusal(configuration: TrainingConfiguration, shape: Shape, stage: Stage, there: Room, needed: Memory) -> str:
    parts = sorted(((size, part) for part, size in asdict(needed).items() if size), reverse=True)
    told = ", ".join(f"{part} {size / GB:.2f}" for size, part in parts)
    where = "" if there.devices == 1 else f" on each of {there.devices} devices"
    lines = [
        f"{shape.name} by {configuration.method} needs {needed.total / GB:.2f} GB{where}, and there are "
        f"{there.free / GB:.2f} GB of {there.what}: {told}."
    ]
    helpful = [(change, _of(changed, shape, stage, there).total) for change, changed in _smaller(configuration)]
    for change, total in sorted(helpful, key=lambda one: one[1]):
        if total < needed.total:
            lines.append(f"  {change} needs {total / GB:.2f} GB{'' if total <= there.free else ', still too much'}")
    for devices in (2, 4, 8, 16, 32, 64):
        more = Room(there.free, there.what, there.devices * devices, there.bf16, there.gpu)
        if there.gpu and (total := _of(configuration, shape, stage, more).total) <= there.free:
            lines.append(f"  {more.devices} such devices with FSDP need {total / GB:.2f} GB each")
            break
    return "\n".join(lines)


def _smaller(configuration: TrainingConfiguration) -> list[tuple[str, TrainingConfiguration]]:
    """What a person may change, and the configuration with it; the last is all of it together."""
    changes: list[tuple[str, dict[str, object]]] = []
    if configuration.method != "qlora":
        changes.append(("method: qlora", {"method": "qlora"}))
    if configuration.method == "full":
        changes.append(("method: lora", {"method": "lora"}))
    if not configuration.gradient_checkpointing:
        changes.append(("gradient_checkpointing: true", {"gradient_checkpointing": True}))
    if configuration.batch_size > 1:
        more = configuration.gradient_accumulation * configuration.batch_size
        told = f"batch_size: 1 with gradient_accumulation: {more}"
        changes.append((told, {"batch_size": 1, "gradient_accumulation": more}))
    if configuration.max_length >= 1024:
        changes.append((f"max_length: {configuration.max_length // 2}", {"max_length": configuration.max_length // 2}))
    if len(changes) > 1:
        together: dict[str, object] = {}
        for _, change in changes:
            together = change | together
        changes.append(("all of these together", together))
    return [(told, msgspec.structs.replace(configuration, **change)) for told, change in changes]


def _notes(configuration: TrainingConfiguration, hardware: Gpu) -> list[str]:
    notes = []
    if hardware.bf16 is None and configuration.precision == "bf16":
        notes.append(f"{hardware.name} cannot compute in bf16: set precision to auto or fp32")
    if configuration.lora.dora and configuration.method != "full":
        notes.append("DoRA computes the norm of every weight anew in each step, which is not counted")
    return notes


def told(plan: Plan) -> str:
    """A plan as a person reads it."""
    devices = f"one {plan.gpu}" if plan.devices == 1 else f"{plan.devices} × {plan.gpu}"
    share = 100 * plan.trainable / plan.parameters
    lines = [
        f"{plan.model}, {plan.stage} by {plan.method} on {devices} of {plan.room / GB:.0f} GB",
        f"{plan.parameters / GB:.2f} billion parameters, {plan.trainable / 1e6:,.1f} million trained ({share:.3g} %)",
        "",
        f"{'memory of each device':24}{'GB':>10}",
        *(f"  {part:22}{size / GB:10.2f}" for part, size in plan.memory.items() if size),
        f"  {'together':22}{plan.needed / GB:10.2f}  {'fits' if plan.fits else 'DOES NOT FIT'}",
        "",
        f"{'tokens a step':24}{plan.tokens_per_step:>10,}",
    ]
    if plan.steps is None or plan.tokens is None or plan.seconds is None or plan.operations is None:
        lines.append(f"{'a step':24}{_span(plan.seconds_per_step):>10}  {_assumed(plan)}")
    else:
        lines += [
            f"{'steps':24}{plan.steps:>10,}",
            f"{'tokens':24}{plan.tokens:>10,}",
            f"{'operations':24}{plan.operations:>10.2e}",
            f"{'time':24}{_span(plan.seconds):>10}  {_assumed(plan)}",
        ]
        if plan.cost is None:
            lines.append(f"{'cost':24}{'not told':>10}  --price X: of a device for an hour")
        else:
            lines.append(f"{'cost':24}{plan.cost:>10,.2f}  at {plan.price:g} a device and hour")
    return "\n".join([*lines, *(f"note: {note}" for note in plan.notes)])


def compared(plans: Sequence[Plan]) -> str:
    """One run on different devices, a line each."""
    first = plans[0]
    lines = [
        f"{first.model}, {first.stage} by {first.method}: {first.parameters / GB:.2f} billion parameters, "
        f"{first.trainable / 1e6:,.1f} million trained",
        "",
        f"{'devices':16}{'needed GB':>10}{'there':>8}{'time':>11}",
    ]
    for found in plans:
        time = "-" if found.seconds is None else _span(found.seconds)
        sizes = f"{found.needed / GB:>10.1f}{found.room / GB:>8.0f}"
        name = found.gpu if found.devices == 1 else f"{found.devices} × {found.gpu}"
        lines.append(f"{name:16}{sizes}{time:>11}{'' if found.fits else '  does not fit'}")
    lines += ["", f"times if {100 * first.utilisation:.3g} % of the peak are reached; --gpu NAME tells more of one"]
    notes = dict.fromkeys(note for found in plans for note in found.notes)
    return "\n".join([*lines, *(f"note: {note}" for note in notes)])


def _assumed(plan: Plan) -> str:
    return f"if {100 * plan.utilisation:.3g} % of {plan.peak:g} TFLOPS are reached"


def _span(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= 2 * size or unit == "s":
            return f"{seconds / size:.3g} {unit}"
    raise AssertionError("a time is in some unit")
