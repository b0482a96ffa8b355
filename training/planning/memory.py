"""How many bytes a training run takes on each device, part by part.

With N the parameters, T the trainable ones, and t = batch_size * max_length the tokens of one forward pass (twice as
many for DPO, which runs the chosen and the rejected answer):

- weights: 4 N of `full` (fp32, computed in bf16 by autocast); N at the width of `precision` for LoRA and 4 T for its
  adapters; QLoRA holds the layers' linear weights in half a byte and the rest at that width, its adapters in bf16;
- constants of 4-bit weights: a scale a block of 64; with double quantisation one byte for it, and an fp32 for 256 of
  these (Dettmers et al., 2023, QLoRA: 0.5 bits a parameter become 0.127);
- gradients: as wide as what is trained; AdamW: two numbers a trainable parameter (Loshchilov and Hutter, 2019), in 8
  bits with an fp32 a block of 256 (Dettmers et al., 2022, 8-bit Optimizers via Block-wise Quantization);
- activations: what autograd keeps of a layer, counted as in Korthikanti et al. (2022, Reducing Activation
  Recomputation in Large Transformer Models), for RMS norms, gated MLPs, grouped queries, and attention that never
  writes its scores (Dao et al., 2022, FlashAttention); with gradient checkpointing (Chen et al., 2016) only each
  layer's input, and one layer whole;
  of Gemma 2, which caps the scores, they are counted; packed sequences lie in one row, with a mask over all of it;
- head: logits are made in tiles of at most 4,096 tokens by 32,768 words (TRL), and fp32 gradients of what they rest on;
- several devices divide weights, gradients and optimiser state (Zhao et al., 2023, PyTorch FSDP; Rajbhandari et al.,
  2020, ZeRO), and gather two layers and what is outside of them;
- overhead: FIXED bytes and SLACK of the rest for the CUDA context, workspaces and fragmentation: assumed, not measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from math import ceil

from training.configuration import InvalidConfiguration, Stage, TrainingConfiguration
from training.planning.architecture import FAMILIES, LINEAR, Shape, Weight

FIXED, SLACK = 750_000_000, 0.05
BLOCK, NESTED = 64, 256
TILE_TOKENS, TILE_WORDS = 4096, 32_768
# Without Triton (on a CPU) the tile's softmax and gradient are made of fp32 tensors as large as the tile.
CPU_TILES = 6


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on each device at the highest point, by part. `activations`: kept from the forward pass; `recomputed`: of
    the one layer that gradient checkpointing makes anew; `gathered`: what FSDP holds whole for a moment; `reference`:
    the second model of DPO without an adapter.
    """

    weights: int
    constants: int
    gradients: int
    optimiser: int
    activations: int
    recomputed: int
    head: int
    gathered: int = 0
    reference: int = 0
    overhead: int = 0

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(asdict(self).values())


@dataclass(frozen=True, slots=True)
class Trained:
    """`count` equal trainable tensors, each number `bytes` wide."""

    rows: int
    columns: int
    count: int
    bytes: int
    embedding: bool = False

    @property
    def numbers(self) -> int:
        """The parameters in all of them."""
        return self.rows * self.columns * self.count


def width(configuration: TrainingConfiguration, bf16: bool) -> int:
    """The bytes of a number that is computed with; `bf16`: whether the device can."""
    return 2 if configuration.precision == "bf16" or (configuration.precision == "auto" and bf16) else 4


def targets(configuration: TrainingConfiguration, shape: Shape) -> dict[str, tuple[int, int, int]]:
    """The linear layers that get an adapter: outputs, inputs, and how many, by name; {} of `full`.

    Raises InvalidConfiguration of a name that no layer has.
    """
    if configuration.method == "full":
        return {}
    layers = {name: (*sizes, shape.layers) for name, sizes in shape.linear().items()}
    asked = configuration.lora.target_modules
    if asked == "all-linear":
        return layers
    layers["lm_head"] = (shape.vocabulary, shape.hidden, 1)
    unknown = [name for name in asked if name not in layers]
    if unknown:
        told = f"{shape.name} has no layer {', '.join(unknown)}; there are {', '.join(layers)}"
        raise InvalidConfiguration(f"lora.target_modules: {told}")
    return {name: layers[name] for name in asked}


def trained(configuration: TrainingConfiguration, shape: Shape) -> Iterator[Trained]:
    """Every tensor that training changes. TRL keeps adapters in fp32, over 4-bit weights in bf16."""
    if configuration.method == "full":
        for weight in shape.weights():
            yield Trained(weight.rows, weight.columns, weight.count, 4, weight.role == "embedding")
        return
    rank, adapter = configuration.lora.rank, 2 if configuration.method == "qlora" else 4
    for outputs, inputs, count in targets(configuration, shape).values():
        yield Trained(rank, inputs, count, adapter)
        yield Trained(outputs, rank, count, adapter)
        if configuration.lora.dora:
            yield Trained(outputs, 1, count, 4)


def memory(
    configuration: TrainingConfiguration,
    shape: Shape,
    *,
    stage: Stage = "sft",
    devices: int = 1,
    bf16: bool = True,
    gpu: bool = True,
) -> Memory:
    """What one of `devices` takes, which divide one model. Raises InvalidConfiguration."""
    wide = width(configuration, bf16)
    tensors = list(trained(configuration, shape))
    held, constants = _weights(configuration, shape, wide)
    weights = held + sum(tensor.numbers * tensor.bytes for tensor in tensors if configuration.method != "full")
    gradients = sum(tensor.numbers * tensor.bytes for tensor in tensors)
    tokens = configuration.batch_size * configuration.max_length * (2 if stage == "dpo" else 1)
    kept, again = _activations(configuration, shape, wide, tokens)
    found = Memory(
        weights=ceil(weights / devices),
        constants=ceil(constants / devices),
        gradients=ceil(gradients / devices),
        optimiser=ceil(sum(_state(tensor, _optimiser(configuration, gpu)) for tensor in tensors) / devices),
        activations=kept,
        recomputed=again,
        head=_head(configuration, shape, wide, tokens, gpu),
        gathered=_gathered(configuration, shape, wide) if devices > 1 else 0,
        reference=_reference(configuration, stage, held, devices),
    )
    return replace(found, overhead=FIXED + int(SLACK * found.total))


def _weights(configuration: TrainingConfiguration, shape: Shape, wide: int) -> tuple[int, int]:
    """The bytes of the model as it is held, without adapters, and those of its 4-bit constants."""
    if configuration.method == "full":
        return 4 * shape.parameters, 0
    held = constants = 0
    for weight in shape.weights():
        if configuration.method == "qlora" and weight.role == "linear":
            held += ceil(weight.numbers / 2)
            constants += _constants(weight, configuration.qlora.double_quant)
        else:
            held += wide * weight.numbers
    return held, constants


def _constants(weight: Weight, double: bool) -> int:
    blocks = ceil(weight.rows * weight.columns / BLOCK)
    # The 16 values of NF4, and of double quantisation the mean that was taken off the scales.
    of_one = blocks + 4 * ceil(blocks / NESTED) + 4 if double else 4 * blocks
    return weight.count * (of_one + 64)


def _optimiser(configuration: TrainingConfiguration, gpu: bool) -> str:
    if configuration.optimiser != "auto":
        return configuration.optimiser
    return "paged_adamw_8bit" if configuration.method == "qlora" and gpu else "adamw_torch"


def _state(tensor: Trained, optimiser: str) -> int:
    """The bytes of an optimiser's state. Small tensors and embeddings stay in 32 bits in an 8-bit one."""
    one = tensor.rows * tensor.columns
    if optimiser == "adamw_torch":
        of_one = 2 * one * tensor.bytes + 4
    elif optimiser == "adafactor":
        of_one = 4 * (tensor.rows + tensor.columns if tensor.columns > 1 else tensor.rows)
    elif optimiser == "paged_adamw_32bit" or tensor.embedding or one < 4096:
        of_one = 8 * one
    else:
        of_one = 2 * (one + 4 * ceil(one / 256))
    return of_one * tensor.count


def _activations(configuration: TrainingConfiguration, shape: Shape, wide: int, tokens: int) -> tuple[int, int]:
    """Bytes kept from the forward pass, and of the layer that is made anew."""
    full = configuration.method == "full"
    stream = 4 if full else wide
    # Packed, the sequences of a batch lie in one row.
    row = configuration.max_length * (configuration.batch_size if configuration.packing else 1)
    layer = tokens * layer_activations(configuration, shape, wide, row)
    if full and wide == 2:  # autocast keeps what it cast the fp32 weights to
        layer += 2 * sum(rows * columns for rows, columns in shape.linear().values())
    # After the layers: the last norm, its output, the cosines and sines of the positions.
    end = tokens * (shape.hidden * (4 + stream * (2 if full else 1)) + 2 * shape.head_dim * stream)
    if configuration.packing:  # which token may see which: once as yes or no, and as numbers in each layer
        end += row * row
        layer += 0 if FAMILIES[shape.family].scores else wide * row * row
    if configuration.gradient_checkpointing:
        return tokens * shape.hidden * stream * shape.layers + end, layer
    return layer * shape.layers + end, 0


def layer_activations(configuration: TrainingConfiguration, shape: Shape, wide: int, row: int) -> int:
    """The bytes that autograd keeps of one layer for each token, in rows of `row` tokens."""
    family, asked = FAMILIES[shape.family], set(targets(configuration, shape))
    full = configuration.method == "full"
    hidden, inner, queries, keys = shape.hidden, shape.intermediate, shape.queries, shape.keys
    # Norms in fp32: their input and, where their weight is trained, that input normalised; a number a token each.
    norms = family.norms * (hidden * (8 if full else 4) + 4)
    if family.query_norm:
        norms += (queries + keys) * (8 if full else 4) + 4 * (shape.heads + shape.kv_heads)
    # Queries, output, keys, values, and a number a head.
    attention = wide * (2 * queries + 2 * keys) + 4 * shape.heads
    if family.scores:  # capped, as probabilities in fp32, and these in the computed precision; keys for every head
        attention = wide * 4 * queries + shape.heads * row * (8 if wide == 2 else 4 + 4)
    # What comes of gate and up, and the gate's activation.
    mlp = 3 * wide * inner
    # What goes into each linear layer, for the gradient of its weight or of its adapter.
    learning = set(LINEAR) if full else asked & set(LINEAR)
    sizes = {name: inputs for name, (_, inputs) in shape.linear().items()}
    adapter = 2 if configuration.method == "qlora" else 4
    if full and wide == 2:  # autocast casts for each layer anew; what attention gives is bf16 already
        inputs = wide * sum(sizes[name] for name in learning - {"o_proj"})
    elif full or adapter == wide:
        inputs = wide * sum(
            sizes[first] for first, *others in (LINEAR[:3], LINEAR[4:6], LINEAR[6:]) if learning & {first, *others}
        )  # one tensor for all that read it
    else:  # peft casts for each adapter anew
        inputs = 2 * sum(sizes[name] for name in learning)
    if not full:
        inputs += len(learning) * configuration.lora.rank * min(wide, adapter)
        if configuration.lora.dropout:  # a mask of a byte each, and an input of its own
            shared = sum(sizes[name] for name in learning)
            inputs += shared * (1 + (wide if adapter == wide else 0))
    return norms + attention + mlp + inputs


def _head(configuration: TrainingConfiguration, shape: Shape, wide: int, tokens: int, gpu: bool) -> int:
    tile = min(tokens, TILE_TOKENS) * min(shape.vocabulary, TILE_WORDS)
    found = tile * wide + 4 * tokens * shape.hidden
    if not gpu:
        found += 4 * tile * CPU_TILES
    if configuration.method == "full":
        found += 4 * shape.vocabulary * shape.hidden
        if wide == 2:
            found += 2 * min(shape.vocabulary, TILE_WORDS) * shape.hidden
    return found


def _gathered(configuration: TrainingConfiguration, shape: Shape, wide: int) -> int:
    """Two layers whole, one that computes and one that is on its way, and what belongs to no layer."""
    layer = sum(rows * columns for rows, columns in shape.linear().values())
    outside = sum(weight.numbers for weight in shape.weights() if weight.role in ("embedding", "head"))
    each = 0.5 + 1 / BLOCK if configuration.method == "qlora" else wide
    return int(2 * layer * each) + outside * wide


def _reference(configuration: TrainingConfiguration, stage: Stage, held: int, devices: int) -> int:
    """DPO compares with the model as it was: an adapter is switched off for that, a whole model is held twice."""
    if stage != "dpo" or configuration.method != "full":
        return 0
    return 0 if configuration.dpo.precompute_reference and devices == 1 else ceil(held / devices)
