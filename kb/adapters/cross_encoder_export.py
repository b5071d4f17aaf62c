"""A cross-encoder's directory: what its files say, and its export to ONNX in a process of its own.

`python -m kb.adapters.cross_encoder_export SRC DST` is that process; see `kb.adapters.onnx_export`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from kb.adapters.model_layout import ModelLayout, model_name, read_json
from kb.adapters.onnx_export import write_manifest
from kb.adapters.onnx_model import TOKENIZER_FILE, OnnxUnusable
from kb.errors import ProviderNotInitialized

CHILD = (sys.executable, "-P", "-W", "ignore", "-m", "kb.adapters.cross_encoder_export")
MOST_DIFFERENCE = 1e-3
_UNLIMITED = 2**31 - 1
_PROBES = (
    ("What reduces the risk of heart failure?", "Regular exercise does."),
    ("", "An empty question."),
    ("知识库检索", "Ünïcode, naïve cafés - and\tCJK: 知识库检索增强生成"),
    ("long", "A long text that goes beyond what the model reads. " * 200),
)


def read_cross_encoder(path: Path) -> ModelLayout:
    """What the configuration files of a cross-encoder say; no weights are read for it.

    Raises:
        ProviderNotInitialized: there is no such directory, or it holds another kind of model.
    """
    config = read_json(path / "config.json")
    if not isinstance(config, dict):
        raise ProviderNotInitialized(
            f"no cross-encoder in {str(path)!r}: config.json is missing; save the model there with "
            "CrossEncoder(...).save_pretrained(...)"
        )
    labels = len(config.get("id2label") or ()) or int(config.get("num_labels") or 2)
    kinds = [str(name) for name in config.get("architectures") or ()]
    if labels != 1 or not any(name.endswith("ForSequenceClassification") for name in kinds):
        what = ", ".join(kinds) or "a model of no known architecture"
        raise ProviderNotInitialized(
            f"the model in {str(path)!r} is no cross-encoder: it is {what} with {labels} labels, "
            "and must be one for sequence classification with a single label"
        )
    tokenizer = read_json(path / "tokenizer_config.json")
    limits = [config.get("max_position_embeddings")]
    if isinstance(tokenizer, dict):
        limits.append(tokenizer.get("model_max_length"))
    fingerprint = {
        key: value
        for key, value in config.items()
        if key not in {"_name_or_path", "transformers_version", "torch_dtype", "dtype"}
    }
    return ModelLayout(
        path=path,
        name=f"{model_name(path)}-cross",
        dim=None,
        max_tokens=min([_UNLIMITED, *(int(limit) for limit in limits if limit and limit > 0)]),
        pooling=(),
        query_prompt="",
        document_prompt="",
        unsupported="",
        fingerprint=json.dumps(fingerprint, sort_keys=True),
    )


def export(source: Path, target: Path) -> None:
    """Write `model.onnx`, `tokenizer.json` and the manifest, all on disk when it returns.

    Raises:
        OnnxUnusable: what ONNX Runtime computes is not what torch computes.
    """
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from transformers import AutoTokenizer

    layout = read_cross_encoder(source)
    model = ORTModelForSequenceClassification.from_pretrained(
        source, export=True, provider="CPUExecutionProvider", local_files_only=True
    )
    model.save_pretrained(target)
    load: Any = AutoTokenizer.from_pretrained
    tokenizer = load(source, local_files_only=True)
    tokenizer.backend_tokenizer.save(str(target / TOKENIZER_FILE))
    del model
    verify(layout, target)
    write_manifest(target)


def verify(layout: ModelLayout, target: Path) -> None:
    """Compare an export, served as the server serves it, with sentence-transformers on torch.

    Raises:
        OnnxUnusable: a score differs by more than 0.001.
    """
    from kb.adapters.local_reranker import OnnxCrossEncoder, TorchCrossEncoder

    served = OnnxCrossEncoder(target, layout.max_tokens)
    reference = TorchCrossEncoder(layout, layout.max_tokens)
    for query, text in _PROBES:
        pair = np.array([served.scores(query, [text]), reference.scores(query, [text])])
        worst = float(np.abs(pair[0] - pair[1]).max())
        if not worst <= MOST_DIFFERENCE:
            raise OnnxUnusable(
                f"the exported model is not faithful: a score differs by {worst:.4f} from torch's, "
                f"which is more than {MOST_DIFFERENCE}"
            )


def main() -> int:
    """Export directory `sys.argv[1]` into `sys.argv[2]`; the last line of stderr says why not."""
    source, target = (Path(argument) for argument in sys.argv[1:3])
    try:
        export(source, target)
    except OnnxUnusable as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
