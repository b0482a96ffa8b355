"""One word changed in every real article, again and again: little is embedded, and nothing is left over."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

pytestmark = pytest.mark.integration
ARTICLES = Path(__file__).parents[3] / "shared" / "data" / "handbook" / "articles.json"
ROUNDS = 3


@pytest.mark.skipif(not ARTICLES.exists(), reason="the handbook's articles are not here")
def test_a_changed_word_embeds_the_passage_that_it_stands_in_and_leaves_nothing_behind(running: Any) -> None:
    running.ingest(str(ARTICLES))
    running.wait()
    source = random.Random(7)
    documents = running.json("verify")["documents"]
    before = running.asked("/api/status")["stream"]["counts"]

    address = json.loads((running.home / "addresses.json").read_text())["mongodb_uri"]
    with MongoClient[dict[str, Any]](address) as client:
        collection = client["twin"]["documents"]
        for number in range(ROUNDS):
            for record in collection.find({}, {"text": 1}):
                words = list(re.finditer(r"(?<=\w )[a-z]{5,}(?= \w)", record["text"]))
                word = source.choice(words)
                text = f"{record['text'][: word.start()]}zanzibar{number}{record['text'][word.end() :]}"
                collection.update_one({"_id": record["_id"]}, {"$set": {"text": text}})
            running.wait()

    counts = running.asked("/api/status")["stream"]["counts"]
    edits = ROUNDS * documents
    embedded = counts["chunks_embedded"] - before["chunks_embedded"]
    assert counts["documents_indexed"] - before["documents_indexed"] == edits
    assert edits <= embedded <= 1.3 * edits
    assert counts["chunks_deleted"] - before.get("chunks_deleted", 0) <= 1.3 * edits
    verified = running.json("verify", "--sample", "20")
    assert verified["documents"] == 20
    assert running.json("verify")["documents"] == documents
    print(f"{edits} edits embedded {embedded} chunks, {embedded / edits:.2f} an edit")
