"""Exporting a sentence-transformers model to ONNX, once, in a process of its own.

`python -m kb.adapters.onnx_export SRC DST` is that process: it needs torch, seconds and more than
a gigabyte, none of which a server should spend.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from kb.adapters.model_layout import (
    ModelLayout,
    content_hash,
    read_layout,
)
from kb.adapters.onnx_model import (
    MODEL_FILE,
    QUERY_FILE,
    TOKENIZER_FILE,
    OnnxBackend,
    OnnxUnusable,
    normalised,
)
from pipelines.types import Vectors

logger = logging.getLogger("kb.embedding")

MANIFEST = "export.json"
FORMAT = 2
"""Exports of another format are made anew, beside them: an older version of kb may still run."""
MIN_COSINE = 0.999
MIN_QUERY_COSINE = 0.998
"""Of the faster form of the model; a model that does not reach it does without."""
CHILD = (sys.executable, "-P", "-W", "ignore", "-m", "kb.adapters.onnx_export")

_PROBES = (
    "What reduces the risk of heart failure?",
    "",
    "Ünïcode, naïve cafés - and\tCJK: 知识库检索增强生成",
    "The mitochondrion makes adenosine triphosphate by oxidative phosphorylation. " * 3,
    "A long text that goes beyond what the model reads. " * 200,
)


def exported(
    layout: ModelLayout,
    cache_dir: Path,
    *,
    timeout_s: float = 600.0,
    command: Sequence[str] = CHILD,
) -> Path:
    """The directory of the finished export of a model; made now if it is not there.

    Of threads and processes that ask at once, one exports and the others wait for it. An export
    that was interrupted leaves nothing that is taken for a finished one.

    Args:
        timeout_s: for an export, and for waiting for somebody else's.
        command: program that exports, called with the source and the target directory.
    Raises:
        OnnxUnusable: the model cannot be exported, or not faithfully; the message says why.
    """
    target = cache_dir / f"{layout.name}-{content_hash(layout)[:16]}-v{FORMAT}"
    if is_finished(target):
        return target
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_dir / f"{target.name}.lock", timeout=timeout_s):
            if not is_finished(target):
                _discard_leftovers(target)
                _export_in_child(layout, target, timeout_s, command)
    except Timeout as exc:
        raise OnnxUnusable(f"another process has been exporting for {timeout_s:g} s") from exc
    except OSError as exc:
        raise OnnxUnusable(f"cannot write the export to {str(target)!r}: {exc}") from exc
    return target


def is_finished(directory: Path) -> bool:
    """Whether a directory holds a whole export of the current format."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        return bool(manifest["format"] == FORMAT) and all(
            (directory / name).stat().st_size == size for name, size in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _export_in_child(
    layout: ModelLayout, target: Path, timeout_s: float, command: Sequence[str]
) -> None:
    """Run the child and rename its finished work, so that it appears whole or not at all."""
    logger.info("exporting the model %s to ONNX, once; takes some 10 s", layout.name)
    started = time.monotonic()
    work = Path(mkdtemp(prefix=f"{target.name}.", suffix=".tmp", dir=target.parent))
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(
            [*command, str(layout.path), str(work)],
            env=os.environ | offline | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
        if done.returncode != 0:
            last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
            raise OnnxUnusable(f"the export failed: {last[0]}")
        if not is_finished(work):
            raise OnnxUnusable("the export ended without a result")
        _rename(work, target)
    except subprocess.TimeoutExpired as exc:
        raise OnnxUnusable(f"the export took longer than {timeout_s:g} s") from exc
    finally:
        shutil.rmtree(work, ignore_errors=True)
    took_s = time.monotonic() - started
    logger.info("exported the model %s in %.1f s to %s", layout.name, took_s, target)


def _rename(work: Path, target: Path) -> None:
    try:
        work.rename(target)
    except OSError:
        if not is_finished(target):
            raise


def _discard_leftovers(target: Path) -> None:
    """Remove what interrupted exports left; call it with the lock held."""
    for leftover in [target, *target.parent.glob(f"{target.name}.*.tmp")]:
        if leftover.exists():
            logger.info("removing an unfinished export: %s", leftover)
            shutil.rmtree(leftover)


def export(source: Path, target: Path) -> None:
    """Write `model.onnx`, `tokenizer.json` and the manifest, all on disk when it returns; and
    `query.onnx`, if queries by it come close enough.

    Raises:
        OnnxUnusable: what ONNX Runtime computes is not what torch computes.
    """
    from sentence_transformers import SentenceTransformer

    layout = read_layout(source)
    if layout.unsupported:
        raise OnnxUnusable(f"numpy does not do {layout.unsupported}")
    onnx = SentenceTransformer(
        str(source),
        device="cpu",
        backend="onnx",
        local_files_only=True,
        model_kwargs={"export": True, "provider": "CPUExecutionProvider"},
    )
    staging = target / "staging"
    onnx[0].auto_model.save_pretrained(staging)
    for file in (staging / "onnx").iterdir():  # the model, and its weights above 2 GB
        file.rename(target / file.name)
    shutil.rmtree(staging)
    onnx.tokenizer.backend_tokenizer.save(str(target / TOKENIZER_FILE))
    del onnx
    reference = SentenceTransformer(str(source), device="cpu", local_files_only=True)
    verify(layout, target, reference)
    write_manifest(target, queries=_add_query_model(layout, target, reference))


def _add_query_model(layout: ModelLayout, target: Path, reference: Any) -> str:
    """What queries are embedded by, for the manifest."""
    from kb.adapters.onnx_queries import write_query_model

    try:
        write_query_model(target / MODEL_FILE, target / QUERY_FILE)
        _verify_queries(layout, target, reference)
    except Exception as exc:  # noqa: BLE001 - a graph can fail in any way; it serves without
        (target / QUERY_FILE).unlink(missing_ok=True)
        return f"{MODEL_FILE}, because: {exc}"
    return QUERY_FILE


def verify(layout: ModelLayout, target: Path, reference: Any) -> None:
    """Compare an export, served as the server serves it, with sentence-transformers on torch.

    Args:
        reference: the SentenceTransformer.
    Raises:
        OnnxUnusable: a vector's cosine to torch's is 0.999 or less, or limits differ.
    """
    if reference.max_seq_length != layout.max_tokens:
        raise OnnxUnusable(
            f"read a limit of {layout.max_tokens} tokens from the model's files, "
            f"sentence-transformers of {reference.max_seq_length}"
        )
    served = OnnxBackend(target, layout, threads=1, batch_size=2, niceness=0, int8_queries=False)
    documents = served.embed_documents(_PROBES)
    queries = np.stack([served.embed_query(text) for text in _PROBES])
    served.close()
    _compare(documents, reference, _PROBES, layout.document_prompt, MIN_COSINE)
    _compare(queries, reference, _PROBES, layout.query_prompt, MIN_COSINE)


def _verify_queries(layout: ModelLayout, target: Path, reference: Any) -> None:
    probes = [probe for probe in _PROBES if probe]  # nobody asks nothing
    served = OnnxBackend(target, layout, threads=1, batch_size=1, niceness=0)
    queries = np.stack([served.embed_query(text) for text in probes])
    served.close()
    _compare(queries, reference, probes, layout.query_prompt, MIN_QUERY_COSINE)


def _compare(
    vectors: Vectors, reference: Any, texts: Sequence[str], prompt: str, least: float
) -> None:
    wanted = normalised(reference.encode(list(texts), prompt=prompt))
    worst = min(float(a @ b) for a, b in zip(wanted, vectors, strict=True))
    if not worst > least:
        raise OnnxUnusable(
            f"the exported model is not faithful: cosine {worst:.4f} to torch's vectors, "
            f"needs more than {least}"
        )


def write_manifest(target: Path, **told: str) -> None:
    """Say what an export is made of; from then on it is a finished one, all of it on disk.

    Args:
        told: what else the manifest says.
    """
    from importlib.metadata import version

    packages = ("torch", "sentence-transformers", "optimum-onnx", "onnxruntime")
    manifest = {
        "format": FORMAT,
        **told,
        "made_with": {name: version(name) for name in packages},
        "files": {file.name: file.stat().st_size for file in sorted(target.iterdir())},
    }
    (target / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for path in [*target.iterdir(), target]:  # whole after a loss of power, too
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


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
