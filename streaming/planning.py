"""What building another generation takes, measured on a sample of the warehouse's documents."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from corpus.documents import from_record
from streaming.indexing import Refusal, derive

if TYPE_CHECKING:
    from corpus.embedding import Embedder
    from corpus.warehouse import Warehouse

# Enough for a total within a few per cent, and a second or two of work.
DOCUMENTS, CHUNKS = 300, 64


@dataclass(frozen=True, slots=True)
class Plan:
    """`documents` of the warehouse, `chunks` and `tokens` that they become; exact if all are in the sample of `sampled`
    documents, else estimated from it. `chunks_per_second`: of the model, measured now; `seconds`: to embed all."""

    documents: int
    chunks: int
    tokens: int
    sampled: int
    chunks_per_second: float
    seconds: float


def planned(warehouse: Warehouse, generation: str, embedder: Embedder) -> Plan:
    """Clean and split a sample, and embed some of it. Raises what the warehouse raises when it is away."""
    ids = [stamp.id for stamp in warehouse.stamps()]
    sample = random.sample(ids, min(DOCUMENTS, len(ids)))
    texts: list[str] = []
    for record in warehouse.raw_records(sample):
        try:
            made = derive(from_record(record), generation, embedder)
        except (ValueError, OverflowError):
            # One that is refused has no chunks.
            continue
        if not isinstance(made, Refusal):
            texts += [chunk.text for chunk in made.chunks]
    scale = len(ids) / len(sample) if sample else 0.0
    chunks = round(len(texts) * scale)
    few = random.sample(texts, min(CHUNKS, len(texts)))
    # A model is slower the first time.
    embedder.embed(few[:2])
    start = time.perf_counter()
    embedder.embed(few)
    rate = len(few) / max(time.perf_counter() - start, 1e-9)
    return Plan(
        documents=len(ids),
        chunks=chunks,
        tokens=round(sum(embedder.count_tokens(texts)) * scale),
        sampled=len(sample),
        chunks_per_second=round(rate, 1) if few else 0.0,
        seconds=round(chunks / rate, 1) if few else 0.0,
    )
