"""A cross-encoder for the tests: random weights, four thousand of them, saved with transformers."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from tempfile import mkdtemp

from tests.models import model_cache

WORDS = "the a of in is what how long capital france paris warranty apples whales sing red"
LIMIT = 32
"""Tokens that it reads."""


def tiny_cross_encoder() -> Path:
    """Its directory; made once for all runs, the same every time."""
    target = model_cache() / "tiny-cross-encoder-1"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        made = Path(mkdtemp(dir=target.parent))
        _save(made)
        try:
            os.rename(made, target)
        except OSError:  # another run was faster
            shutil.rmtree(made)
    return target


def _save(target: Path) -> None:
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.split()]
    (target / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    tokenizer = BertTokenizerFast(str(target / "vocab.txt"), model_max_length=LIMIT)
    tokenizer.save_pretrained(target)
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=LIMIT,
        num_labels=1,
        initializer_range=0.5,
    )
    BertForSequenceClassification(config).eval().save_pretrained(target)
