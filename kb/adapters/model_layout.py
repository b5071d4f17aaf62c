"""What the files of a sentence-transformers model directory say, before any weights are loaded."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any

from kb.errors import ProviderNotInitialized

_UNLIMITED = 2**31 - 1
_POOLING = {"cls", "max", "mean", "mean_sqrt_len_tokens"}
_LEGACY_POOLING = {  # in the order in which sentence-transformers concatenates them
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_TOKENIZER_DATA = {
    "tokenizer.json", "vocab.txt", "vocab.json", "merges.txt",
    "sentencepiece.bpe.model", "spiece.model", "tokenizer.model",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelLayout:
    """What the configuration files of a model directory say; no weights are read for it.

    Attributes:
        name: the model's name, `[a-z0-9-]`.
        dim: None when a module's width is not written in a file that we know.
        max_tokens: special tokens included.
        pooling: modes whose vectors are concatenated.
        query_prompt, document_prompt: put before each text; the model's prompts `query`, and the
            first that is not empty of `document`, `passage`, `corpus`.
        unsupported: what of this model numpy does not do faithfully; empty when nothing.
        fingerprint: every setting that changes a vector, as canonical JSON.
    """

    path: Path
    name: str
    dim: int | None
    max_tokens: int
    pooling: tuple[str, ...]
    query_prompt: str
    document_prompt: str
    unsupported: str
    fingerprint: str


def read_layout(path: Path) -> ModelLayout:
    """The layout of a sentence-transformers model directory.

    Raises:
        ProviderNotInitialized: there is no such directory, or it holds no such model.
    """
    modules = read_json(path / "modules.json")
    if not isinstance(modules, list) or not modules:
        raise ProviderNotInitialized(
            f"no sentence-transformers model in {str(path)!r}: modules.json is missing or empty; "
            "save the model there with SentenceTransformer(...).save_pretrained(...)"
        )
    kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    folders = [path / str(module["path"]) for module in modules]
    transformer = _as_dict(read_json(folders[0] / "config.json"))
    sentence = _sentence_config(folders[0])
    dim: int | None = transformer.get("hidden_size")
    pooling: tuple[str, ...] = ()
    pool_config: dict[str, Any] = {}
    odd: list[str] = [] if kinds[0] == "Transformer" else [f"the module {kinds[0]}"]
    for kind, folder in zip(kinds[1:], folders[1:], strict=True):
        config = _as_dict(read_json(folder / "config.json"))
        if kind == "Pooling" and not pooling:
            pool_config, pooling = config, _pooling_modes(config)
            width = config.get("embedding_dimension", config.get("word_embedding_dimension"))
            dim = int(width or dim or 0) * len(pooling) or None
            odd += [f"{mode} pooling" for mode in pooling if mode not in _POOLING]
        elif kind != "Normalize":
            odd.append(f"the module {kind}")
            dim = config.get("out_features", dim) if kind in {"Dense", "LayerNorm"} else None
    if not pooling:
        odd.append("a model without pooling")
    card = _as_dict(read_json(path / "config_sentence_transformers.json"))
    query, document = _prompts(card)
    if (query or document) and not pool_config.get("include_prompt", True):
        odd.append("pooling without the prompt")
    tokenizer = _as_dict(read_json(folders[0] / "tokenizer_config.json"))
    if "left" in {tokenizer.get("padding_side"), tokenizer.get("truncation_side")}:
        odd.append("padding or truncation on the left")
    max_tokens = _max_tokens(sentence, tokenizer, transformer)
    settings = {
        "modules": kinds,
        "pooling": pooling,
        "include_prompt": pool_config.get("include_prompt", True),
        "prompts": [query, document],
        "max_tokens": max_tokens,
        "lower_case": bool(sentence.get("do_lower_case")),
        "tokenizer": {
            key: tokenizer.get(key)
            for key in ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
        },
        "transformer": {
            key: value
            for key, value in transformer.items()
            if key not in {"_name_or_path", "transformers_version", "torch_dtype", "dtype"}
        },
    }
    return ModelLayout(
        path=path,
        name=model_name(path),
        dim=dim,
        max_tokens=max_tokens,
        pooling=pooling,
        query_prompt=query,
        document_prompt=document,
        unsupported=", ".join(odd),
        fingerprint=json.dumps(settings, sort_keys=True),
    )


def content_hash(layout: ModelLayout) -> str:
    """32 hex digits over everything that changes a vector: weights, vocabulary, settings.

    BLAKE2b: 0.1 s for 90 MB, a third of what SHA-256 takes here.

    Raises:
        ProviderNotInitialized: the directory has no weights.
    """
    total = blake2b(layout.fingerprint.encode(), digest_size=16)
    for file in _content_files(layout.path):
        with file.open("rb") as stream:
            total.update(str(file.relative_to(layout.path)).encode())
            total.update(file_digest(stream, "blake2b").digest())
    return total.hexdigest()


def model_name(path: Path) -> str:
    """The model's name, lower case and safe in file names.

    A directory of the Hugging Face cache (`models--org--name/snapshots/...`) gives `name`,
    any other directory its own name.
    """
    parts = path.resolve().parts
    hub = [part.split("--")[-1] for part in parts if part.startswith("models--")]
    name = hub[-1] if hub else parts[-1]
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "model"


def read_json(file: Path) -> object:
    """What a JSON file holds; None when it is not there.

    Raises:
        ProviderNotInitialized: it cannot be read.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as exc:
        raise ProviderNotInitialized(f"cannot read the model's {str(file)!r}: {exc}") from exc


def _as_dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _sentence_config(folder: Path) -> dict[str, Any]:
    for file in sorted(folder.glob("sentence_*_config.json")):
        return _as_dict(read_json(file))
    return {}


def _pooling_modes(config: dict[str, Any]) -> tuple[str, ...]:
    mode = config.get("pooling_mode")
    if isinstance(mode, str):
        return (mode,)
    if mode:
        return tuple(mode)
    return tuple(m for key, m in _LEGACY_POOLING.items() if config.get(key)) or ("mean",)


def _prompts(card: dict[str, Any]) -> tuple[str, str]:
    prompts = _as_dict(card.get("prompts"))
    names = ("document", "passage", "corpus")
    document = next((prompts[name] for name in names if prompts.get(name)), "")
    return str(prompts.get("query") or ""), str(document)


def _max_tokens(
    sentence: dict[str, Any], tokenizer: dict[str, Any], transformer: dict[str, Any]
) -> int:
    if sentence.get("max_seq_length"):
        return int(sentence["max_seq_length"])
    limits = [tokenizer.get("model_max_length"), transformer.get("max_position_embeddings")]
    return min([_UNLIMITED, *(int(limit) for limit in limits if limit and limit > 0)])


def _content_files(path: Path) -> list[Path]:
    files = [
        file
        for file in sorted(path.rglob("*"))
        if file.is_file() and not {"onnx", "openvino", ".git"} & set(file.relative_to(path).parts)
    ]
    tensors = [file for file in files if file.suffix == ".safetensors"]
    folders = {file.parent for file in tensors}
    pickled = [file for file in files if file.suffix == ".bin" and file.parent not in folders]
    if not tensors and not pickled:
        raise ProviderNotInitialized(
            f"the model directory {str(path)!r} has no weights (*.safetensors or *.bin)"
        )
    return tensors + pickled + [file for file in files if file.name in _TOKENIZER_DATA]
