"""Every known shape is built without its weights, and has the layers and parameters that plans count with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from training.configuration import load
from training.planning.architecture import FAMILIES, LINEAR, Known, known_shapes, read_shape, shape_of
from training.planning.memory import targets, trained

pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.integration,
    # peft asks for what transformers renamed.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


CONFIGS = [path for path in sorted(Path("training/configs").glob("*.yaml")) if "# Meant for" in path.read_text()]


def built(configuration: dict[str, Any]) -> Any:
    """The model on the meta device, where a tensor has a shape and no numbers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**configuration))


@pytest.mark.parametrize("known", known_shapes(), ids=lambda known: known.hub[0])
def test_a_shape_has_the_published_parameters_and_the_layers_that_are_counted(known: Known) -> None:
    import torch

    model, shape = built(known.configuration), read_shape(known.configuration, known.hub[0])

    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted == pytest.approx(known.parameters, rel=0.01)
    assert counted == shape.parameters
    found: dict[str, set[tuple[int, int]]] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            found.setdefault(name.rpartition(".")[2], set()).add((module.out_features, module.in_features))
    assert found == {name: {sizes} for name, sizes in shape.linear().items()}
    assert shape.windowed == (getattr(model.config, "layer_types", None) or []).count("sliding_attention")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_adapter_of_a_configuration_has_the_parameters_that_are_counted(path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    run = load(path)
    known = next(shape for shape in known_shapes() if run.model in shape.hub)
    if run.method == "full":
        assert sum(tensor.numbers for tensor in trained(run, shape_of(run.model))) == known.parameters
        return
    # Layers are alike: two are enough.
    two = known.configuration | {"num_hidden_layers": 2}
    shape = read_shape(two, run.model)
    asked = run.lora.target_modules
    adapter = LoraConfig(
        r=run.lora.rank, target_modules=asked if isinstance(asked, str) else list(asked), task_type="CAUSAL_LM"
    )

    model = get_peft_model(built(two), adapter)

    changed = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert sum(parameter.numel() for parameter in changed.values()) == sum(
        tensor.numbers for tensor in trained(run, shape)
    )
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in changed} == set(targets(run, shape)) == set(LINEAR)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_model_that_was_saved_is_counted_from_its_folder(family: str, tied: bool, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    numbers = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 100}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **numbers, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied)
    )

    model.config.save_pretrained(tmp_path)

    assert shape_of(str(tmp_path)).parameters == sum(parameter.numel() for parameter in model.parameters())


def test_the_numbers_that_a_configuration_leaves_out_are_those_of_transformers() -> None:
    from transformers import AutoConfig

    for name, family in FAMILIES.items():
        default = AutoConfig.for_model(name)
        heads, hidden = default.num_attention_heads, default.hidden_size
        assert default.num_key_value_heads == (family.kv_heads or heads)
        assert (getattr(default, "head_dim", None) or hidden // heads) == (family.head_dim or hidden // heads)
        assert default.tie_word_embeddings == family.tied
        assert getattr(default, "sliding_window", None) == family.window
        kinds = getattr(default, "layer_types", None) or []
        windowed = read_shape(default.to_dict(), name).windowed
        assert windowed == (kinds.count("sliding_attention") if family.full_every else windowed)
