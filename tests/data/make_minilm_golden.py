"""Writes minilm_golden.npz: texts and their vectors by sentence-transformers on torch.

Run `python tests/data/make_minilm_golden.py` to make it anew.
"""

from pathlib import Path

import numpy as np

TEXTS = [
    "",
    " \t\n ",
    "a",
    "What reduces the risk of heart failure?",
    "The quick brown fox jumps over the lazy dog.",
    "  leading and trailing white space matter to nobody  ",
    "GPT-3.5-turbo, v1.01, foo_bar and C++ are identifiers; 3.14 and 2024 are numbers.",
    "Ünïcödé, naïve cafés and ﬁ ligatures; full width: ＡＢＣ１２３",
    "知识库通过检索增强生成来回答问题。",
    "東京は日本の首都です。人口は約1400万人。",
    "한국어 문장도 하나 있습니다.",
    "Смешанный text на двух языках with 数字 42.",
    "مرحبا بالعالم",
    "emoji 🙂👩‍👩‍👧 and symbols ∑∫√ €",
    "[CLS] special [SEP] tokens [MASK] in a text [PAD]",
    "| name | size |\n|---|---|\n| a | 1 |\n| b | 2 |",
    "x" * 150,
    "word " * 253 + "last",
    "word " * 254 + "last",
    "word " * 255 + "last",
    "Each sentence of this text is the same, and there are many of them. " * 100,
    "长文本会被截断。" * 200,
]


def main() -> None:
    """Embed the texts and save them beside this file; float16, because cosines need no more."""
    from sentence_transformers import SentenceTransformer

    from kb.adapters.local_embedder import packaged_model

    vectors = SentenceTransformer(str(packaged_model()), device="cpu").encode(TEXTS)
    np.savez_compressed(
        Path(__file__).parent / "minilm_golden.npz",
        texts=np.array(TEXTS),
        vectors=vectors.astype(np.float16),
    )


if __name__ == "__main__":
    main()
