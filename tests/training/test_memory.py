"""The memory formula is held against what torch, peft and bitsandbytes really allocate, with tiny shapes on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from training.configuration import Lora, Method, TrainingConfiguration
from training.planning.architecture import FAMILIES, Shape, read_shape
from training.planning.hardware import room
from training.planning.memory import Memory, layer_activations, memory

pytest.importorskip("trl")
pytestmark = [
    pytest.mark.integration,
    # peft calls what transformers has renamed; torch's own, of its JIT, that bitsandbytes calls.
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:bitsandbytes.*"),
]


BATCH, LENGTH = 2, 128


def shape(family: str = "llama", layers: int = 3) -> Shape:
    return read_shape(
        {
            "model_type": family,
            "hidden_size": 64,
            "intermediate_size": 192,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "vocab_size": 512,
            "max_position_embeddings": 512,
            "tie_word_embeddings": False,
            "sliding_window": None,
        },
        f"tiny {family}",
    )


def configuration(method: Method, checkpointing: bool = False, precision: str = "fp32") -> TrainingConfiguration:
    return TrainingConfiguration(
        model="tiny",
        dataset="none",
        output="none",
        method=method,
        batch_size=BATCH,
        max_length=LENGTH,
        gradient_checkpointing=checkpointing,
        precision=precision,  # type: ignore[arg-type]
        optimiser="adamw_torch",
        lora=Lora(rank=8),
    )


def told(asked: TrainingConfiguration, of: Shape) -> Memory:
    return memory(asked, of, gpu=False, bf16=False)


def built(asked: TrainingConfiguration, of: Shape, folder: Path) -> Any:
    """The model as training/sft.py and TRL make it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
    from trl.trainer.utils import add_fused_lm_head

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            of.family,
            hidden_size=of.hidden,
            intermediate_size=of.intermediate,
            num_hidden_layers=of.layers,
            num_attention_heads=of.heads,
            num_key_value_heads=of.kv_heads,
            head_dim=of.head_dim,
            vocab_size=of.vocabulary,
            max_position_embeddings=512,
            tie_word_embeddings=of.tied,
            sliding_window=FAMILIES[of.family].window if FAMILIES[of.family].full_every else None,
            attn_implementation="eager" if FAMILIES[of.family].scores else "sdpa",
            pad_token_id=0,
        )
    )
    computed = torch.bfloat16 if asked.precision == "bf16" else torch.float32
    if asked.method == "qlora":
        model.save_pretrained(folder)
        four = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=asked.qlora.double_quant,
            bnb_4bit_compute_dtype=computed,
        )
        model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=four, dtype=computed)
    elif asked.method == "lora":
        model = model.to(computed)
    add_fused_lm_head(model)
    if asked.method != "full":
        lora = LoraConfig(r=asked.lora.rank, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, lora)
    if asked.method == "qlora":
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
    if asked.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if asked.method != "full":
            model.enable_input_require_grads()
    model.train()
    return model


def kept(model: Any, asked: TrainingConfiguration) -> int:
    """Bytes that autograd keeps of a forward pass beside the model itself, each storage once."""
    import torch

    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    found: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        if tensor.untyped_storage().data_ptr() not in own:
            found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens = torch.randint(0, 512, (BATCH, LENGTH))
    places: dict[str, Any] = {}
    if asked.packing:  # as TRL does: one row, in which the places begin anew
        tokens = tokens.reshape(1, -1)
        places = {"position_ids": torch.arange(LENGTH).repeat(BATCH)[None]}
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=asked.precision == "bf16"),
    ):
        model(input_ids=tokens, labels=tokens, fused_lm_head=True, **places)
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


@pytest.mark.parametrize("method", ["full", "lora"])
def test_weights_gradients_and_optimiser_state_are_what_a_step_of_training_allocates(
    method: Method, tmp_path: Path
) -> None:
    import torch

    asked, of = configuration(method), shape()
    model = built(asked, of, tmp_path)
    changed = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(changed)
    tokens = torch.randint(0, 512, (BATCH, LENGTH))

    model(input_ids=tokens, labels=tokens, fused_lm_head=True).loss.backward()
    optimiser.step()

    expected = told(asked, of)
    assert sum(parameter.nbytes for parameter in model.parameters()) == expected.weights
    assert sum(parameter.grad.nbytes for parameter in changed) == expected.gradients
    states = [tensor for state in optimiser.state.values() for tensor in state.values()]
    assert sum(tensor.nbytes for tensor in states) == expected.optimiser


@pytest.mark.parametrize("double", [True, False])
def test_four_bit_weights_and_their_constants_are_what_bitsandbytes_holds(double: bool, tmp_path: Path) -> None:
    import msgspec

    asked = configuration("qlora", precision="bf16")
    asked = msgspec.structs.replace(asked, qlora=msgspec.structs.replace(asked.qlora, double_quant=double))
    model = built(asked, shape(), tmp_path)

    constants: dict[int, int] = {}
    for parameter in model.parameters():
        if (state := getattr(parameter, "quant_state", None)) is not None:
            held = [state.absmax, state.code]
            if double:
                held += [state.state2.absmax, state.offset]
            for tensor in held:
                constants[tensor.data_ptr()] = tensor.nbytes

    expected = told(asked, shape())
    assert sum(parameter.nbytes for parameter in model.parameters()) == expected.weights
    assert sum(constants.values()) == expected.constants


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_activations_are_within_a_tenth_of_what_autograd_keeps(
    method: Method, precision: str, checkpointing: bool, tmp_path: Path
) -> None:
    asked, of = configuration(method, checkpointing, precision), shape()

    measured = kept(built(asked, of, tmp_path), asked)

    expected = told(asked, of).activations
    print(f"{method} {precision} checkpointing {checkpointing}: formula / measured = {expected / measured:.3f}")
    assert 0.98 < expected / measured < 1.1


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_packed_sequences_cost_a_mask_over_the_whole_row_in_each_layer(
    precision: str, checkpointing: bool, tmp_path: Path
) -> None:
    import msgspec

    asked = msgspec.structs.replace(configuration("lora", checkpointing, precision), packing=True)

    measured = kept(built(asked, shape(), tmp_path), asked)
    if checkpointing:  # the mask waits among the arguments of the layers, where autograd's hooks do not see it
        measured += (BATCH * LENGTH) ** 2

    expected = told(asked, shape()).activations
    print(f"packed, {precision} checkpointing {checkpointing}: formula / measured = {expected / measured:.3f}")
    assert 0.98 < expected / measured < 1.1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_layer_more_keeps_what_the_formula_says_of_a_layer_in_every_family(
    family: str, method: Method, precision: str, tmp_path: Path
) -> None:
    asked = configuration(method, precision=precision)
    few, more = (kept(built(asked, shape(family, layers), tmp_path), asked) for layers in (2, 4))
    measured = (more - few) / 2

    wide = 2 if precision == "bf16" else 4
    expected = BATCH * LENGTH * layer_activations(asked, shape(family), wide, LENGTH)
    if precision == "bf16":
        # What autocast casts of fp32 weights is no activation, and with so few tokens not small beside them.
        linear = shape(family).linear().values()
        cast = [rows * columns for rows, columns in linear]
        expected += 2 * (sum(cast) if method == "full" else sum(8 * (rows + columns) for rows, columns in linear))
    print(f"{family} {method} {precision}: formula / measured = {expected / measured:.3f}")
    assert 0.98 < expected / measured < 1.06


def test_the_room_of_this_machine_is_its_gpu_or_its_memory_and_fsdp_divides_the_model() -> None:
    import torch

    alone = room({"WORLD_SIZE": "4"})
    together = room({"WORLD_SIZE": "4", "ACCELERATE_USE_FSDP": "true"})

    assert alone is not None
    assert together is not None
    assert alone.gpu == torch.cuda.is_available()
    assert alone.free > 10**8
    assert (alone.devices, together.devices) == (1, 4)
