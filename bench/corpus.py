"""A labelled set as documents for kb, its vectors, and a larger corpus made from it."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import insert

from bench.evaluation import LabelledSet
from kb.adapters.local_embedder import LocalEmbedder
from kb.db import now, open_database, transaction
from kb.ingestion.embedding_cache import text_hash
from kb.migrations import upgrade
from kb.models import CachedEmbedding
from kb.settings import Settings
from pipelines.types import Vector, Vectors

SEPARATOR = "\n\u241e\n"
"""Stands between the texts of one document; it occurs in no corpus."""

_SENTENCE = re.compile(r"\S.*?(?:[.!?](?=\s)|[。！？]|\Z)", re.DOTALL)
_OWN_SHARE = 0.7  # of a made text: how much of it comes from its first source
_NOISE = 0.25  # length of the random part of a made vector, before it is brought to length 1


@dataclass(frozen=True, slots=True)
class Bundle:
    """A document that becomes one segment for each of its texts, in their order."""

    name: str
    texts: tuple[str, ...]

    @property
    def text(self) -> str:
        """What is uploaded."""
        return SEPARATOR.join(self.texts)


def bundles(texts: Sequence[str], per_document: int, *, first: int = 0) -> Iterator[Bundle]:
    """Documents of `per_document` texts each, named by the number of their first text.

    Args:
        first: number of the first text.
    """
    for at in range(0, len(texts), per_document):
        yield Bundle(str(first + at), tuple(texts[at : at + per_document]))


def number_of(record: dict[str, Any]) -> int:
    """Which text a record of a retrieve answer is: that of `bundles`."""
    segment = record["segment"]
    return int(segment["document"]["name"]) + int(segment["position"]) - 1


def process_rule(texts: Sequence[str]) -> dict[str, Any]:
    """One segment for each text, whole and not cleaned."""
    longest = max(map(len, texts), default=0)
    return {
        "mode": "custom",
        "rules": {
            "pre_processing_rules": [],
            "segmentation": {
                "separator": SEPARATOR,
                "max_tokens": max(50, longest),
                "chunk_overlap": 0,
            },
        },
    }


def searchable(corpus: LabelledSet) -> LabelledSet:
    """The corpus without blank documents, which nothing can find, and without outer white space."""
    kept = [(i, t.strip()) for i, t in zip(corpus.ids, corpus.texts, strict=True) if t.strip()]
    return LabelledSet(
        name=corpus.name,
        ids=tuple(i for i, _ in kept),
        texts=tuple(t for _, t in kept),
        query_ids=corpus.query_ids,
        queries=corpus.queries,
        qrels=corpus.qrels,
    )


def vectors_of(texts: Sequence[str], cache_dir: Path) -> Vectors:
    """kb's vectors of these texts, float32[n, dim]; embedded once per cache directory."""
    embedder = LocalEmbedder(None, cache_dir=cache_dir / "models", niceness=0)
    digest = sha256("\0".join([embedder.id, *texts]).encode()).hexdigest()[:16]
    file = cache_dir / "vectors" / f"{digest}.npy"
    if file.exists():
        kept: Vectors = np.load(file)
        return kept
    vectors = embedder.embed_documents(texts)
    embedder.close()
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, vectors)
    return vectors


def enlarged(
    texts: Sequence[str], vectors: Vectors, size: int, *, seed: int = 0
) -> tuple[list[str], Vectors]:
    """The first `size` of the texts, followed by made ones when there are fewer.

    A made text is about as long as one of the corpus, which also gives 70 % of its sentences; the
    others come from a second text; all are shuffled. So words are as frequent as in the corpus and
    no two texts are equal. Its vector is the normalised sum of the two sources' vectors in the same
    shares and of noise: such texts are near their sources, as their embeddings would be.
    """
    draw = random.Random(seed)
    noise = np.random.default_rng(seed)
    made_texts = list(texts[:size])
    made_vectors = [vectors[:size]]
    for number in range(len(made_texts), size):
        own, other = draw.randrange(len(texts)), draw.randrange(len(texts))
        made_texts.append(_mixed(texts[own], texts[other], number, draw))
        random_part = noise.standard_normal(vectors.shape[1])
        mixture = (
            _OWN_SHARE * vectors[own]
            + (1 - _OWN_SHARE) * vectors[other]
            + _NOISE * random_part / np.linalg.norm(random_part)
        )
        made_vectors.append((mixture / np.linalg.norm(mixture)).astype(np.float32)[None])
    return made_texts, np.concatenate(made_vectors)


def _mixed(own: str, other: str, number: int, draw: random.Random) -> str:
    mine, theirs = _SENTENCE.findall(own), _SENTENCE.findall(other)
    taken = draw.sample(mine, max(1, round(_OWN_SHARE * len(mine))))
    missing = len(own) - sum(map(len, taken))
    for sentence in draw.sample(theirs, len(theirs)):
        if missing <= 0:
            break
        taken.append(sentence)
        missing -= len(sentence)
    draw.shuffle(taken)
    return " ".join([*(" ".join(sentence.split()) for sentence in taken), str(number)])


def remember_vectors(settings: Settings, texts: Sequence[str], vectors: Vectors) -> int:
    """Put vectors into a data directory's embedding cache, as if kb had embedded the texts.

    Returns:
        How many there are; equal texts have one.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    embedder = LocalEmbedder(None, cache_dir=settings.data_dir)
    sessions = open_database(settings.sqlalchemy_url)
    upgrade(sessions.engine)
    by_hash: dict[str, Vector] = {
        text_hash(text): vector for text, vector in zip(texts, vectors, strict=True)
    }
    rows = [
        {
            "model": embedder.id,
            "text_hash": digest,
            "vector": vector.astype("<f4").tobytes(),
            "created_at": now(),
        }
        for digest, vector in by_hash.items()
    ]
    with transaction(sessions) as session:
        session.execute(insert(CachedEmbedding), rows)
    sessions.close()
    return len(rows)
