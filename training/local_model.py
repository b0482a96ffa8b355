"""A model in a folder on this machine: it answers, and tells how likely it thinks an answer. Nothing is downloaded."""

from __future__ import annotations

import gc
import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from corpus.prompts import Message
from training.datasets.wordsmith import Request
from training.evaluation.figures import model_folder, model_name
from training.planning.hardware import room

# Numbers of a batch's logits: 0.5 GB in fp32 on a CPU, 2 GB in bf16 on a GPU.
LOGITS = {"cpu": 1 << 27, "cuda": 1 << 30}
# Sequences that are continued at once.
TOGETHER = {"cpu": 16, "cuda": 64}
# Less room than this for an answer is none.
LEAST_ANSWER = 32


class UnusableModel(RuntimeError):
    """The model cannot be loaded or talked to; the message says why and what to do."""


class NoSystemMessages(UnusableModel):
    """The model's chat template takes no system message."""


class TooLong(ValueError):
    """A prompt leaves no room for an answer within the model's context; the message has the numbers."""


class Likelihood(NamedTuple):
    """How likely an answer is to a model: the sum of its tokens' negative log-probabilities (nats), and over how many
    tokens and bytes of UTF-8; `whole`: all of it was within the context, else what was is counted."""

    nll: float
    tokens: int
    bytes: int
    whole: bool = True


class LocalModel:
    """A causal language model with a chat template, on the GPU in bf16 where there is one that has it, else in fp32.

    `folder`: with the model's config.json, or that of a run; `context`: tokens of prompt and answer together.
    Raises UnusableModel, and UnreadableFigures where there is no model.
    """

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.folder = model_folder(folder)
        gpu = torch.cuda.is_available()
        self.device = "cuda" if gpu else "cpu"
        bf16 = gpu and torch.cuda.is_bf16_supported(including_emulation=False)
        _must_fit(self.folder, 2 if bf16 else 4)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
            self._model = AutoModelForCausalLM.from_pretrained(
                self.folder,
                dtype=torch.bfloat16 if bf16 else torch.float32,
                device_map="auto" if gpu else None,
                local_files_only=True,
            ).eval()
        except Exception as error:
            raise UnusableModel(
                f"the model in {self.folder} cannot be loaded ({str(error)[:300]}): train or copy it again"
            ) from error
        if not self.tokenizer.chat_template:
            raise UnusableModel(
                f"the model in {self.folder} has no chat template, so nobody can ask it anything: take the variant of "
                "it that was made for chats"
            )
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        shape = self._model.config.get_text_config()
        limits = (getattr(shape, "max_position_embeddings", None), self.tokenizer.model_max_length)
        # A tokenizer without a limit says 10^30.
        self.context: int = min([limit for limit in limits if limit and limit < 1 << 24] or [2048])
        self._vocabulary: int = shape.vocab_size

    @cached_property
    def name(self) -> str:
        """The folder's or the run's name with the first digits of the SHA-256 of the weights."""
        return model_name(self.folder)

    def close(self) -> None:
        """Give the memory back; nothing can be asked any more."""
        import torch

        del self._model
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    @cached_property
    def spelling(self) -> str:
        """SHA-256 of how texts are cut into tokens: figures by token are comparable only where it is the same."""
        told = self.tokenizer.backend_tokenizer.to_str() if self.tokenizer.is_fast else repr(self.tokenizer.get_vocab())
        return hashlib.sha256(told.encode()).hexdigest()

    def count(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt. Raises NoSystemMessages."""
        return len(self._ids(self._rendered(messages, asking=True)))

    def fits(self, messages: Sequence[Message], max_tokens: int) -> bool:
        """Whether an answer of so many tokens has room behind this prompt. Raises NoSystemMessages."""
        return self.count(messages) + max_tokens <= self.context

    def answers(
        self,
        prompts: Sequence[Sequence[Message]],
        max_tokens: int = 256,
        greedy: bool = True,
        *,
        seed: int = 0,
        told: Callable[[int], None] = lambda done: None,
    ) -> list[str]:
        """An answer to each prompt, in order, of at most `max_tokens` tokens and as many as the context leaves.

        `greedy`: always the likeliest token; otherwise each is drawn by its probability, by `seed`. `told` hears how
        many are done. Raises TooLong, NoSystemMessages.
        """
        import torch

        ids = [self._ids(self._rendered(messages, asking=True)) for messages in prompts]
        for each in ids:
            if len(each) + min(LEAST_ANSWER, max_tokens) > self.context:
                raise TooLong(
                    f"a prompt has {len(each):,} tokens, and the context of {self.name} is {self.context:,}: shorten it"
                )
        torch.manual_seed(seed)
        found = [""] * len(ids)
        done = 0
        for places, limit in self._batches([len(each) for each in ids], max_tokens):
            answers = self._continued([ids[at] for at in places], limit, greedy)
            for place, answer in zip(places, answers, strict=True):
                found[place] = answer
            done += len(places)
            told(done)
        return found

    def nll(
        self, pairs: Sequence[tuple[Sequence[Message], str]], *, told: Callable[[int], None] = lambda done: None
    ) -> list[Likelihood]:
        """How likely each answer is after its prompt, by the model's own chat template.

        Only the tokens of the answer's own text count: neither the prompt's nor the mark that ends a turn, which a
        model that never saw this template cannot know. Raises UnusableModel where a probability is no number.
        """
        import torch

        encoded = [self._placed(messages, answer) for messages, answer in pairs]
        found = [Likelihood(0.0, 0, 0)] * len(pairs)
        room_for = max(1, LOGITS[self.device] // self._vocabulary)
        done = 0
        for places in _grouped([len(each.ids) for each in encoded], room_for, TOGETHER[self.device]):
            batch = [encoded[at] for at in places]
            tokens, mask = self._padded([each.ids for each in batch], left=False)
            with torch.inference_mode():
                logits = self._model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
            for row, (place, each) in enumerate(zip(places, batch, strict=True)):
                at = torch.tensor(each.counted, dtype=torch.long, device=logits.device)
                aims = tokens[row].to(logits.device)[at]
                sum_ = torch.nn.functional.cross_entropy(logits[row, at - 1].float(), aims, reduction="sum").item()
                if sum_ != sum_ or sum_ in (float("inf"), float("-inf")):
                    raise UnusableModel(f"the model {self.name} gives no numbers: its weights are damaged, train again")
                found[place] = Likelihood(sum_, len(each.counted), each.bytes, each.whole)
            done += len(places)
            told(done)
        return found

    def _continued(self, ids: Sequence[Sequence[int]], max_tokens: int, greedy: bool) -> list[str]:
        import torch
        from transformers import GenerationConfig

        tokens, mask = self._padded(ids, left=True)
        settings = GenerationConfig(
            max_new_tokens=max_tokens,
            do_sample=not greedy,
            top_k=0,
            eos_token_id=sorted(self._ends),
            pad_token_id=self.tokenizer.pad_token_id,
        )
        with torch.inference_mode():
            written = self._model.generate(tokens, attention_mask=mask, generation_config=settings)
        texts = self.tokenizer.batch_decode(written[:, tokens.shape[1] :], skip_special_tokens=True)
        return [str(text).strip() for text in texts]

    @cached_property
    def _ends(self) -> set[int]:
        """The tokens that end an answer: those that the model knows, and what its template puts behind one."""
        known = self._model.generation_config.eos_token_id
        ends = set(known if isinstance(known, list) else [known]) | {self.tokenizer.eos_token_id}
        turn: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        after = self._ids(self._rendered(turn))
        marks = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        last = next((id for id in reversed(after) if id in marks), None)
        return {id for id in (*ends, last) if id is not None}

    def _placed(self, messages: Sequence[Message], answer: str) -> _Placed:
        """The whole exchange as tokens, and which of them are the answer's."""
        head = self._rendered(messages, asking=True)
        text = self._rendered([*messages, {"role": "assistant", "content": answer}])
        # A template may trim an answer, or put something of its own before it.
        common = next((at for at, (one, other) in enumerate(zip(head, text, strict=False)) if one != other), len(head))
        start = text.find(answer.strip(), common)
        if start < 0:
            raise UnusableModel(f"the chat template of {self.name} changes answers, which cannot be told from marks")
        end = start + len(answer.strip())
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        spans = encoded["offset_mapping"]
        counted = [at for at, (first, last) in enumerate(spans) if at and first < end and last > start and last > first]
        within = [at for at in counted if at < self.context]
        until = min(end, spans[within[-1]][1]) if within else start
        size = len(text[start:until].encode(errors="surrogatepass"))
        return _Placed(encoded["input_ids"][: self.context], within, size, len(within) == len(counted))

    def _rendered(self, messages: Sequence[Message], *, asking: bool = False) -> str:
        from jinja2 import TemplateError

        try:
            return str(self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=asking))
        except TemplateError as error:
            if any(message["role"] == "system" for message in messages):
                raise NoSystemMessages(
                    f"the chat template of {self.name} takes no system message, which the app's prompts have ({error})"
                ) from error
            raise UnusableModel(f"the chat template of {self.name} refuses a conversation ({error})") from error

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _padded(self, ids: Sequence[Sequence[int]], *, left: bool) -> tuple[Any, Any]:
        import torch

        longest = max(map(len, ids))
        tokens = torch.full((len(ids), longest), self.tokenizer.pad_token_id, dtype=torch.long)
        mask = torch.zeros((len(ids), longest), dtype=torch.long)
        for row, each in enumerate(ids):
            place = slice(longest - len(each), longest) if left else slice(0, len(each))
            tokens[row, place] = torch.tensor(each, dtype=torch.long)
            mask[row, place] = 1
        return tokens.to(self._model.device), mask.to(self._model.device)

    def _batches(self, lengths: Sequence[int], max_tokens: int) -> Iterator[tuple[list[int], int]]:
        """Places of prompts of like length, and how many tokens are left for their answers.

        Where the context leaves fewer than asked for, it is whole LEAST_ANSWERs: so prompts that leave about as many
        are continued together, and what one is given does not depend on the others.
        """
        by_limit: defaultdict[int, list[int]] = defaultdict(list)
        for at, length in enumerate(lengths):
            left = self.context - length
            by_limit[max_tokens if left >= max_tokens else max(1, left // LEAST_ANSWER) * LEAST_ANSWER].append(at)
        for limit, places in sorted(by_limit.items()):
            everything = self.context * TOGETHER[self.device]
            for group in _grouped([lengths[at] for at in places], everything, TOGETHER[self.device]):
                yield [places[at] for at in group], limit


class _Placed(NamedTuple):
    """`counted`: places of the answer's tokens; `bytes`: of the answer's text that they spell."""

    ids: list[int]
    counted: list[int]
    bytes: int
    whole: bool


class LocalWordsmith:
    """A local model as a wordsmith: its own answers, which on-policy preferences reject.

    An answer that does not end within `max_tokens` is given up to its last whole sentence, if it has one.
    """

    def __init__(self, model: LocalModel, *, max_tokens: int = 256, seed: int = 0) -> None:
        self.name = model.name
        self._model, self._max_tokens, self._seed = model, max_tokens, seed

    def write(self, requests: Sequence[Request]) -> list[str | None]:
        """As `Wordsmith.write`; None where the prompt is too long for the model, or it wrote nothing."""
        places = [
            at
            for at, each in enumerate(requests)
            if self._model.fits(each.messages, min(LEAST_ANSWER, self._max_tokens))
        ]
        texts = self._model.answers([requests[at].messages for at in places], self._max_tokens, seed=self._seed)
        written: list[str | None] = [None] * len(requests)
        for at, text in zip(places, texts, strict=True):
            written[at] = whole_sentences(text) or None
        return written


def whole_sentences(text: str) -> str:
    """The text up to the last sentence that ends, or as it is where none does."""
    stripped = text.rstrip()
    last = max(stripped.rfind(mark) for mark in ".!?…。！？")
    return stripped[: last + 1] if last > 0 else stripped


def _must_fit(folder: Path, size: int) -> None:
    """Before any weight is loaded. `size`: bytes of a number in memory. Raises UnusableModel, with the numbers."""
    from safetensors import SafetensorError, safe_open

    numbers = 0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="np") as opened:
                names = list(opened.keys())
                numbers += sum(math.prod(opened.get_slice(name).get_shape()) for name in names)
        except (OSError, SafetensorError) as error:
            raise UnusableModel(f"{path} cannot be read ({error}): train or copy the model again") from error
    there = room({})
    if there is None:
        return
    import torch

    free = there.free * (torch.cuda.device_count() if there.gpu else 1)
    if numbers * size > free:
        raise UnusableModel(
            f"the model in {folder} needs {numbers * size / 1e9:,.1f} GB for its weights, and of {there.what} there "
            f"are {free / 1e9:,.1f} GB free: evaluate it on a larger machine"
        )


def _grouped(lengths: Sequence[int], most: int, together: int) -> Iterable[list[int]]:
    """Places by rising length, so many that the longest times their number is at most `most`, at least one."""
    group: list[int] = []
    for at in sorted(range(len(lengths)), key=lambda at: (lengths[at], at)):
        if group and (len(group) == together or lengths[at] * (len(group) + 1) > most):
            yield group
            group = []
        group.append(at)
    if group:
        yield group
