"""A tiny base model for machines without a GPU: the shape of Llama, our own tokenizer and chat template.

It is there so that the whole path runs, and can be seen to learn, in minutes; nobody should expect sense of it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from training.inputs import BASE_RECORD, BaseRecord

BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
ROLES = {role: f"<|{role}|>" for role in ("system", "user", "assistant")}
# Every turn is a role's mark, the text, and the end; an answer begins after the assistant's mark.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
CONTEXT = 1024
LEARNING_RATE = 3e-3
BATCH = 8


class TooLittleText(ValueError):
    """There is not enough text to train a tokenizer and a model on."""


def make(
    texts: Sequence[str],
    folder: Path,
    *,
    seed: int = 0,
    hidden: int = 256,
    layers: int = 6,
    heads: int = 8,
    vocabulary: int = 4096,
    steps: int = 300,
    length: int = 128,
    dataset: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> int:
    """Make a base model of `texts` in `folder`; how many parameters it has.

    The weights are drawn at random from `seed`, then trained to continue the texts for `steps` steps of BATCH pieces of
    `length` tokens (0: left random). `dataset`: the version that the texts are of, which is noted in the folder, so
    that runs on top of the base know of its documents. The folder, new or empty, is there when the model is whole.
    Raises TooLittleText, OSError.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if hidden % heads or (hidden // heads) % 2:
        raise ValueError(f"hidden ({hidden}) must be an even multiple of heads ({heads})")
    if sum(map(len, texts)) < 1_000:
        raise TooLittleText("less than 1,000 characters of text: bring in more documents, then make the base again")
    tokenizer = _tokenizer(texts, vocabulary)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=-(-hidden * 8 // 3 // 32) * 32,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    if steps:
        _continue_texts(model, tokenizer, texts, seed, steps, length, say)
    beside = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        if dataset is not None:
            (beside / BASE_RECORD).write_bytes(msgspec.json.encode(BaseRecord(dataset=dataset)))
        # Moves onto an empty folder, and onto no other.
        beside.replace(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return int(model.num_parameters())


def _tokenizer(texts: Sequence[str], vocabulary: int) -> Any:
    """Byte-level pair encoding (Sennrich et al., 2016), which can spell anything, trained on the texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BEGIN, END, *ROLES.values()],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, pad_token=PAD, model_max_length=CONTEXT
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _continue_texts(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    seed: int,
    steps: int,
    length: int,
    say: Callable[[str], None],
) -> None:
    """Next-token training on pieces of the texts, which stand one after another, each with its end."""
    import torch

    stream = torch.tensor([id for text in texts for id in (*tokenizer(text)["input_ids"], tokenizer.eos_token_id)])
    length = min(length, CONTEXT)
    if len(stream) <= length + 1:
        raise TooLittleText(f"the texts are {len(stream)} tokens, and a piece is {length}: bring in more documents")
    chosen = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1)
    # A warm-up of exactly one step would divide by nothing.
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, LEARNING_RATE, total_steps=steps, pct_start=0.1 if steps >= 20 else 0.3
    )
    model.train()
    for step in range(1, steps + 1):
        starts = torch.randint(len(stream) - length, (BATCH,), generator=chosen)
        pieces = torch.stack([stream[start : start + length] for start in starts.tolist()])
        loss = model(input_ids=pieces, labels=pieces, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        if step % 20 == 0 or step == steps:
            say(f"step {step}/{steps}  loss {loss.item():.4f}")
    model.eval()
