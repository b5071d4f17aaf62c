"""A dataset gets another model or technique: no outage, nothing lost or doubled, whatever dies."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update
from starlette.testclient import TestClient

from kb import switching
from kb.api.app import create_app
from kb.db import now, reading, transaction
from kb.doctor import examine
from kb.errors import StoreUnavailable
from kb.maintenance import rebuild_dataset, run_next_job
from kb.model_registry import Makers, ModelRegistry
from kb.models import (
    ConfiguredModel,
    DatasetSwitch,
    JobKind,
    ModelKind,
    ModelType,
    Segment,
    SwitchPoint,
)
from kb.ports import Space
from kb.resources import FULL_TEXT_SPACE
from pipelines.errors import PipelineError, TransientError
from tests.kb.api import refused
from tests.kb.ingesting import (
    ECONOMY,
    PARENTS,
    Killed,
    Lab,
    WordsEmbedder,
    dies,
    lines,
    open_lab,
)
from tests.kb.server import KEY, search

OTHER = {"embedding_model": "other", "embedding_model_provider": "tests"}
TO_ECONOMY = {"indexing_technique": "economy"}
TO_WORDS = {"indexing_technique": "high_quality"}
TO_OTHER = {"indexing_technique": "high_quality", **OTHER}


class OtherEmbedder(WordsEmbedder):
    """Another model, of other vectors."""

    id = "other-24"
    dim = 24

    def for_space(self, name: str) -> WordsEmbedder | None:
        return self if name == self.id else None


class KnownEmbedder(WordsEmbedder):
    """The default model, which knows its space."""

    def for_space(self, name: str) -> WordsEmbedder | None:
        return self if name == self.id else None


class SwitchLab(Lab):
    """A lab with two models."""

    other: OtherEmbedder

    def change(self, dataset: str, **body: Any) -> dict[str, Any]:
        answer = self.client.patch(f"/v1/datasets/{dataset}", json=body)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def switch(self, dataset: str) -> dict[str, Any]:
        answer = self.client.get(f"/v1/datasets/{dataset}/switch")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def cancel(self, dataset: str) -> Any:
        return self.client.delete(f"/v1/datasets/{dataset}/switch")

    def count(self, space: Space, dataset: str) -> int:
        self.resources.index.ensure_space(space)
        return self.resources.index.count(space, uuid.UUID(dataset))

    def counts(self, dataset: str) -> dict[str, int]:
        return {space.name: self.count(space, dataset) for space in SPACES}

    def healthy(self, *, deep: bool = True) -> bool:
        report = examine(self.resources, repair=False, deep=deep)
        assert report.healthy(), report.shape()
        return True

    def left(self) -> int:
        """Notes of switches that are still there."""
        with reading(self.resources.sessions) as session:
            return session.scalar(select(func.count()).select_from(SwitchPoint)) or 0


WORDS, OTHERS = Space("words-16", 16), Space("other-24", 24)
SPACES = (FULL_TEXT_SPACE, WORDS, OTHERS)


@contextmanager
def open_switch_lab(data_dir: Path, **ingestion: Any) -> Iterator[SwitchLab]:
    """A lab whose API and jobs know the default model, and `other` of `tests`."""
    with open_lab(data_dir, **ingestion) as lab:
        words, other, opened = KnownEmbedder(), OtherEmbedder(), lab.resources

        def nothing(*_: Any) -> Any:
            raise AssertionError

        models = ModelRegistry(
            opened.sessions,
            opened.keyring,
            opened.workspace_id,
            Makers(embedder=lambda record, key: other, reranker=nothing, chat_model=nothing),
            default=words,
            record=opened.models.default_record,
        )
        with transaction(opened.sessions) as session:
            known = select(ConfiguredModel.id).limit(1)
            if session.scalar(known) is None:
                session.add(
                    ConfiguredModel(
                        workspace_id=opened.workspace_id,
                        type=ModelType.EMBEDDING,
                        provider="tests",
                        model="other",
                        kind=ModelKind.OPENAI,
                        options={},
                    )
                )
        resources = replace(
            opened, models=models, embedders=models.embedder_of_space, default_embedder=words
        )
        app = create_app(resources, process_key=KEY)
        with TestClient(app, headers={"Authorization": f"Bearer {KEY}"}) as client:
            made = SwitchLab(resources, client, lab.index, words)
            made.other = other
            yield made


@pytest.fixture
def lab(database: str, tmp_path: Path) -> Iterator[SwitchLab]:
    with open_switch_lab(tmp_path / "data") as opened:
        yield opened


@pytest.fixture
def sqlite_lab(tmp_path: Path) -> Iterator[SwitchLab]:
    """For what is not about SQL."""
    with open_switch_lab(tmp_path / "data") as opened:
        yield opened


def answers(lab: SwitchLab, dataset: str, query: str) -> list[str]:
    """The texts that a query gives, whatever it was asked by, in the order of their text."""
    records = search(lab.client, dataset, query, top_k=50, search_method="hybrid_search")
    found = [record["segment"]["content"] for record in records]
    assert len(found) == len(set(found)), "nothing is answered twice"
    return sorted(found)


# --- the way -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "then", "before", "after"),
    [
        (ECONOMY, TO_WORDS, FULL_TEXT_SPACE, WORDS),
        ({}, TO_ECONOMY, WORDS, FULL_TEXT_SPACE),
        ({}, TO_OTHER, WORDS, OTHERS),
    ],
)
def test_a_dataset_answers_as_before_until_all_of_it_is_in_its_new_space(
    lab: SwitchLab, first: dict[str, Any], then: dict[str, Any], before: Space, after: Space
) -> None:
    dataset = lab.dataset(**first)
    lab.add(dataset, "a", lines(10, "red"))
    lab.settle()
    wanted = answers(lab, dataset, "red")
    assert len(wanted) == 10
    asked = lab.client.get(f"/v1/datasets/{dataset}").json()
    changed = lab.change(dataset, **then)
    in_force = ("indexing_technique", "embedding_model", "embedding_model_provider")
    assert {k: changed[k] for k in in_force} == {k: asked[k] for k in in_force}
    assert lab.switch(dataset)["status"] == "running"
    assert (lab.switch(dataset)["done"], lab.switch(dataset)["total"]) == (0, 10)

    seen: list[tuple[int, int]] = []

    def look(_points: object) -> None:
        assert answers(lab, dataset, "red") == wanted
        progress = lab.switch(dataset)
        seen.append((progress["done"], progress["total"]))

    lab.index.after_upsert = look
    lab.jobs()
    assert seen == [(0, 10), (4, 10), (8, 10)]
    lab.index.after_upsert = lambda points: None
    done = lab.switch(dataset)
    assert (done["status"], done["done"], done["total"], done["error"]) == (
        "completed",
        10,
        10,
        None,
    )
    shown = lab.client.get(f"/v1/datasets/{dataset}").json()
    assert {k: shown[k] for k in in_force} == done["to"]
    assert {k: asked[k] for k in in_force} == done["from"]
    assert answers(lab, dataset, "red") == wanted
    lab.later()
    assert lab.counts(dataset) == {**{s.name: 0 for s in SPACES}, after.name: 10}
    assert before != after
    assert (lab.left(), lab.waiting_jobs()) == (0, [])
    assert lab.healthy()


def test_children_move_with_their_parents(sqlite_lab: SwitchLab) -> None:
    lab = sqlite_lab
    dataset = lab.dataset()
    lab.add(dataset, "a", lines(4, "red") + "\n\n" + lines(4, "green"), **PARENTS)
    lab.settle()
    wanted = answers(lab, dataset, "red1 green1")
    lab.change(dataset, **TO_OTHER)
    lab.settle()
    assert lab.switch(dataset)["status"] == "completed"
    assert lab.count(OTHERS, dataset) == 8
    assert answers(lab, dataset, "red1 green1") == wanted
    lab.later()
    assert lab.healthy()


def test_a_text_is_embedded_once_however_often_its_dataset_is_switched(
    sqlite_lab: SwitchLab,
) -> None:
    lab = sqlite_lab
    dataset = lab.dataset()
    lab.add(dataset, "a", lines(6))
    lab.settle()
    for step in (TO_OTHER, TO_ECONOMY, TO_OTHER, {**TO_WORDS, "embedding_model": MODEL}):
        lab.change(dataset, **step)
        while lab.switch(dataset)["status"] == "running":
            lab.later()
    assert len(lab.embedder.texts) == len(lab.other.texts) == 6
    lab.later()
    assert lab.count(WORDS, dataset) == 6
    assert lab.healthy()


MODEL = "all-MiniLM-L6-v2"
"""The name of the default model."""


def test_a_switch_gets_on_however_little_each_turn_of_its_job_does(
    sqlite_lab: SwitchLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switching, "_SLICE_S", 0.0)
    lab = sqlite_lab
    dataset = lab.dataset()
    lab.add(dataset, "a", lines(10, "red"))
    lab.settle()
    lab.change(dataset, **TO_OTHER)
    turns = 0
    while lab.switch(dataset)["status"] == "running":
        assert run_one(lab, JobKind.SWITCH_DATASET)
        turns += 1
        assert turns < 10
    assert turns > 3
    lab.later()
    assert lab.counts(dataset) == {"full-text": 0, "words-16": 0, "other-24": 10}


def test_a_dataset_without_documents_changes_at_once(sqlite_lab: SwitchLab) -> None:
    lab = sqlite_lab
    dataset = lab.dataset(**ECONOMY)
    changed = lab.change(dataset, **TO_OTHER)
    assert (changed["indexing_technique"], changed["embedding_model"]) == ("high_quality", "other")
    refused(lab.client.get(f"/v1/datasets/{dataset}/switch"), 404, "not_found")


# --- what happens meanwhile ----------------------------------------------------------------------


def test_what_is_uploaded_updated_and_deleted_meanwhile_is_as_it_is_at_the_end(
    lab: SwitchLab,
) -> None:
    dataset = lab.dataset()
    kept = lab.add(dataset, "kept", lines(6, "red"))
    changed = lab.add(dataset, "changed", lines(6, "old"))
    deleted = lab.add(dataset, "deleted", lines(6, "gone"))
    lab.settle()
    lab.change(dataset, **TO_OTHER)
    steps: list[Callable[[], Any]] = [
        lambda: lab.add(dataset, "new", lines(5, "new")),
        lambda: lab.work(),
        lambda: lab.delete(dataset, deleted),
        lambda: lab.add(dataset, "changed", "old number 1 speaks of old1\nfresh words"),
        lambda: lab.work(),
    ]

    def next_step(points: Sequence[Any]) -> None:
        if points[0].dense.shape == (OTHERS.dim,) and steps:
            steps.pop(0)()

    lab.index.after_upsert = next_step
    lab.jobs()
    assert not steps
    lab.index.after_upsert = lambda points: None
    lab.settle()
    assert lab.switch(dataset)["status"] == "completed"
    wanted = [*lines(6, "red").split("\n"), *lines(5, "new").split("\n")]
    wanted += ["old number 1 speaks of old1", "fresh words"]
    assert answers(lab, dataset, "red") == sorted(wanted)
    lab.later()
    lab.assert_index_is_what_sql_says(dataset)
    assert lab.counts(dataset) == {"full-text": 0, "words-16": 0, "other-24": 13}
    assert lab.healthy()
    assert [lab.document(i).indexing_status for i in (kept, changed)] == ["completed"] * 2


def test_a_document_in_work_at_the_end_goes_on_in_the_new_space(lab: SwitchLab) -> None:
    dataset = lab.dataset()
    lab.add(dataset, "a", lines(3, "red"))
    lab.settle()
    new = lab.add(dataset, "b", lines(10, "new"))
    lab.change(dataset, **TO_OTHER)
    upserts = 0

    def switch_meanwhile(points: Sequence[Any]) -> None:
        nonlocal upserts
        upserts += points[0].dense.shape == (WORDS.dim,)
        if upserts == 2:  # its first batch is marked, its second one written
            upserts += 1
            lab.jobs()
            assert lab.switch(dataset)["status"] == "completed"

    lab.index.after_upsert = switch_meanwhile
    claim = lab.claim()
    lab.ingest(claim)
    lab.index.after_upsert = lambda points: None
    assert lab.document(new).indexing_status == "waiting"
    assert lab.document(new).attempts == 0
    lab.settle()
    assert lab.document(new).indexing_status == "completed"
    assert len(answers(lab, dataset, "new")) == 13
    lab.later()
    assert lab.counts(dataset) == {"full-text": 0, "words-16": 0, "other-24": 13}
    assert lab.healthy()


def test_weights_that_are_rebuilt_meanwhile_are_those_of_the_new_space(
    sqlite_lab: SwitchLab,
) -> None:
    lab = sqlite_lab
    dataset = lab.dataset()
    lab.add(dataset, "a", lines(6, "red"))
    lab.settle()
    for name in "bc":  # a third document has nobody look at the weights
        lab.add(dataset, name, f"one very long line {name} indeed " * 15)
        lab.settle()
    lab.change(dataset, **TO_OTHER)

    def rebuild(points: Sequence[Any]) -> None:
        if lab.left() == 0:
            return  # the first batch is not noted yet
        lab.index.after_upsert = lambda points: None
        rebuild_dataset(lab.resources, uuid.UUID(dataset))

    lab.index.after_upsert = rebuild
    lab.settle()
    assert lab.switch(dataset)["status"] == "completed"
    lab.later()
    assert lab.healthy()


def test_what_is_deleted_is_removed_from_both_spaces(
    lab: SwitchLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switching, "_SLICE_S", 0.0)
    dataset = lab.dataset()
    document = lab.add(dataset, "a", lines(4, "red"))
    lab.settle()
    lab.change(dataset, **TO_OTHER)
    assert run_one(lab, JobKind.SWITCH_DATASET)
    assert (lab.count(WORDS, dataset), lab.count(OTHERS, dataset)) == (4, 4)
    lab.delete(dataset, document)
    assert run_one(lab, JobKind.DELETE_DOCUMENT)
    assert (lab.count(WORDS, dataset), lab.count(OTHERS, dataset)) == (0, 0)


def test_the_dataset_may_be_deleted_meanwhile(lab: SwitchLab) -> None:
    dataset = lab.dataset()
    lab.add(dataset, "a", lines(10, "red"))
    lab.settle()
    lab.change(dataset, **TO_OTHER)

    def delete(_points: object) -> None:
        lab.index.after_upsert = lambda points: None
        lab.delete(dataset)

    lab.index.after_upsert = delete
    lab.settle()
    lab.later()
    assert lab.counts(dataset) == {"full-text": 0, "words-16": 0, "other-24": 0}
    assert (lab.left(), lab.waiting_jobs()) == (0, [])
    assert lab.healthy()


def test_a_dataset_deleted_right_after_its_switch_was_cancelled_leaves_no_copies(
    lab: SwitchLab,
) -> None:
    dataset = lab.dataset()
    lab.add(dataset, "a", lines(10, "red"))
    lab.settle()
    lab.change(dataset, **TO_OTHER)

    def die(_points: object) -> None:
        lab.index.after_upsert = lambda points: None
        dies()

    lab.index.after_upsert = die
    with pytest.raises(Killed):
        lab.jobs()
    lab.restart()
    assert lab.cancel(dataset).status_code == 200
    assert lab.count(OTHERS, dataset) == 4
    lab.delete(dataset)
    lab.later()
    assert lab.counts(dataset) == {"full-text": 0, "words-16": 0, "other-24": 0}
    assert lab.waiting_jobs() == []


# --- rules ---------------------------------------------------------------------------------------


def test_a_second_change_while_one_runs_is_refused_unless_it_asks_for_the_same(
    sqlite_lab: SwitchLab,
) -> None:
    lab = sqlite_lab
    dataset = lab.dataset()
    lab.add(dataset, "a", lines(6))
    lab.settle()
    lab.change(dataset, **TO_OTHER)
    first = lab.switch(dataset)["id"]
    message = refused(lab.client.patch(f"/v1/datasets/{dataset}", json=TO_ECONOMY), 409, "conflict")
    assert "'other' of 'tests'" in message
    lab.change(dataset, **TO_OTHER)
    lab.change(dataset, name="renamed", **TO_WORDS)
    lab.change(dataset, embedding_model=MODEL, embedding_model_provider="local")
    assert (lab.switch(dataset)["id"], lab.switch(dataset)["status"]) == (first, "running")
    lab.settle()
    assert lab.switch(dataset)["status"] == "completed"


def test_a_hierarchical_dataset_cannot_become_economy(sqlite_lab: SwitchLab) -> None:
    lab = sqlite_lab
    dataset = lab.dataset()
    lab.add(dataset, "a", "x\n\ny", **PARENTS)
    answer = lab.client.patch(f"/v1/datasets/{dataset}", json=TO_ECONOMY)
    assert "hierarchical_model" in refused(answer, 400, "invalid_param")


def test_an_unknown_model_is_refused_at_once(sqlite_lab: SwitchLab) -> None:
    lab = sqlite_lab
    dataset = lab.dataset()
    lab.add(dataset, "a", "x")
    answer = lab.client.patch(f"/v1/datasets/{dataset}", json={"embedding_model": "nobody"})
    assert "'nobody'" in refused(answer, 400, "invalid_param")
    refused(lab.client.get(f"/v1/datasets/{dataset}/switch"), 404, "not_found")


def test_a_cancelled_switch_leaves_the_dataset_as_it_was(lab: SwitchLab) -> None:
    dataset = lab.dataset()
    lab.add(dataset, "a", lines(10, "red"))
    lab.settle()
    lab.change(dataset, **TO_OTHER)

    def cancel(_points: object) -> None:
        lab.index.after_upsert = lambda points: None
        answer = lab.cancel(dataset)
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")

    lab.index.after_upsert = cancel
    lab.jobs()
    assert lab.cancel(dataset).json()["status"] == "cancelled"
    assert lab.switch(dataset)["finished_at"] is not None
    assert lab.counts(dataset) == {"full-text": 0, "words-16": 10, "other-24": 0}
    assert len(answers(lab, dataset, "red")) == 10
    assert (lab.left(), lab.waiting_jobs()) == (0, [])
    assert lab.healthy()
    lab.change(dataset, **TO_OTHER)
    lab.settle()
    assert lab.switch(dataset)["status"] == "completed"
    assert "'completed'" in refused(lab.cancel(dataset), 409, "conflict")


def test_back_to_where_it_was_waits_until_the_old_points_are_gone(sqlite_lab: SwitchLab) -> None:
    lab = sqlite_lab
    dataset = lab.dataset()
    lab.add(dataset, "a", lines(6, "red"))
    lab.settle()
    lab.change(dataset, **TO_OTHER)
    while lab.switch(dataset)["status"] == "running":
        run_one(lab, JobKind.SWITCH_DATASET)
    lab.change(dataset, **TO_WORDS, embedding_model=MODEL)
    with pytest.raises(switching.ComeAgain, match="earlier switch"):
        switching.switch_dataset(lab.resources, lab.waiting_jobs()[-1].payload)
    while lab.switch(dataset)["status"] == "running":
        lab.later()
    lab.later()
    assert lab.counts(dataset) == {"full-text": 0, "words-16": 6, "other-24": 0}
    assert len(answers(lab, dataset, "red")) == 6
    assert lab.healthy()


def test_the_doctor_counts_what_is_on_its_way_and_finds_nothing_wrong(lab: SwitchLab) -> None:
    dataset = lab.dataset()
    lab.add(dataset, "a", lines(6, "red"))
    lab.settle()
    lab.change(dataset, **TO_OTHER)
    seen: list[tuple[int, int]] = []

    def look(_points: object) -> None:
        report = examine(lab.resources, repair=True, deep=True)
        assert report.healthy(), report.shape()
        seen.append((report.switching, report.points))

    lab.index.after_upsert = look
    lab.jobs()
    lab.index.after_upsert = lambda points: None
    assert seen == [(4, 10), (6, 12)]
    assert lab.count(OTHERS, dataset) == 6, "it did not take them for points that nobody needs"
    lab.resources.index.delete(OTHERS, [next(iter(lab.points(dataset)))], up_to_version=9)
    lab.later()
    assert lab.healthy(), "a dataset is compared once more after its switch"
    assert lab.counts(dataset) == {"full-text": 0, "words-16": 0, "other-24": 6}


# --- failures ------------------------------------------------------------------------------------


def raises(error: Exception) -> Callable[[object], None]:
    def fail(_: object) -> None:
        raise error

    return fail


def test_a_provider_that_is_away_is_waited_for_and_then_the_switch_is_given_up(
    lab: SwitchLab,
) -> None:
    dataset = lab.dataset()
    lab.add(dataset, "a", lines(10, "red"))
    lab.settle()
    lab.change(dataset, **TO_OTHER)
    lab.other.before = raises(TransientError("nobody answers at tests:1"))
    assert run_one(lab, JobKind.SWITCH_DATASET)
    waiting = lab.switch(dataset)
    assert (waiting["status"], waiting["failures"]) == ("running", 1)
    assert waiting["error"] == "nobody answers at tests:1"
    assert waiting["error_code"] == "temporarily_unavailable"
    assert waiting["retry_at"] is not None
    with transaction(lab.resources.sessions) as session:
        session.execute(update(DatasetSwitch).values(progress_at=LONG_AGO))
    lab.later()
    failed = lab.switch(dataset)
    assert (failed["status"], failed["error"]) == ("failed", "nobody answers at tests:1")
    assert failed["finished_at"] is not None
    assert lab.client.get(f"/v1/datasets/{dataset}").json()["embedding_model"] == MODEL
    assert len(answers(lab, dataset, "red")) == 10
    assert lab.counts(dataset) == {"full-text": 0, "words-16": 10, "other-24": 0}
    assert (lab.left(), lab.waiting_jobs()) == (0, [])
    assert lab.healthy()
    lab.other.before = lambda texts: None
    lab.change(dataset, **TO_OTHER)
    lab.settle()
    assert lab.switch(dataset)["status"] == "completed"


LONG_AGO = now().replace(year=now().year - 1, day=1)


def run_one(lab: SwitchLab, kind: JobKind) -> bool:
    return run_next_job(lab.resources, "upkeep", (kind,))


def test_trouble_that_passes_costs_nothing_but_time(sqlite_lab: SwitchLab) -> None:
    lab = sqlite_lab
    dataset = lab.dataset()
    lab.add(dataset, "a", lines(10, "red"))
    lab.settle()
    lab.change(dataset, **TO_OTHER)
    left = 2

    def stumble(_points: object) -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            raise StoreUnavailable("index", "upsert")

    lab.index.before_upsert = stumble
    lab.jobs()
    done = lab.switch(dataset)
    assert (done["status"], done["error"], done["failures"]) == ("completed", None, 0)
    assert len(lab.other.texts) == 10
    lab.later()
    assert lab.healthy()


def test_a_model_that_refuses_ends_the_switch_at_once(sqlite_lab: SwitchLab) -> None:
    lab = sqlite_lab
    dataset = lab.dataset()
    lab.add(dataset, "a", lines(5, "red"))
    lab.settle()
    lab.change(dataset, **TO_OTHER)
    lab.other.before = raises(PipelineError("the key is not accepted", code="refused"))
    lab.jobs()
    failed = lab.switch(dataset)
    assert (failed["status"], failed["error"], failed["error_code"]) == (
        "failed",
        "the key is not accepted",
        "refused",
    )
    assert len(answers(lab, dataset, "red")) == 5
    assert lab.healthy()


# --- killed --------------------------------------------------------------------------------------


@pytest.mark.parametrize("then", [TO_OTHER, TO_ECONOMY])
def test_a_process_killed_at_any_step_loses_and_doubles_nothing(
    lab: SwitchLab, monkeypatch: pytest.MonkeyPatch, then: dict[str, Any]
) -> None:
    dataset = lab.dataset()
    lab.add(dataset, "a", lines(7, "red"))
    lab.settle()
    wanted = answers(lab, dataset, "red")
    lab.change(dataset, **then)
    steps = Steps(lab, monkeypatch)
    killed, step, known = 0, 1, ("", 0)
    while True:
        steps.left = step
        try:
            lab.later()
        except Killed:
            killed += 1
            state = (lab.switch(dataset)["status"], lab.left())
            # As soon as something is kept, it begins anew to die at each following step.
            step, known = (1 if state != known else step + 1), state
            lab.restart()
            assert answers(lab, dataset, "red") == wanted
        else:
            break
    steps.left = 0
    assert killed > 12, "it dies at every step"
    assert lab.switch(dataset)["status"] == "completed"
    assert answers(lab, dataset, "red") == wanted
    lab.later()
    assert sum(lab.counts(dataset).values()) == 7
    assert (lab.left(), lab.waiting_jobs()) == (0, [])
    assert lab.healthy()
    if then is TO_OTHER:
        assert len(lab.other.texts) == 7, "no text is embedded twice"


class Steps:
    """Kills at the n-th write of a switch: before or after it is written, to SQL or the index."""

    def __init__(self, lab: SwitchLab, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 0
        whole = switching.transaction

        @contextmanager
        def killing(sessions: Any) -> Iterator[Any]:
            self._step()
            with whole(sessions) as session:
                yield session
            self._step()

        monkeypatch.setattr(switching, "transaction", killing)
        lab.index.before_upsert = lab.index.after_upsert = lambda points: self._step()

    def _step(self) -> None:
        self.left -= 1
        if self.left == 0:
            dies()


def test_a_point_that_a_killed_process_left_behind_is_not_in_the_new_space(
    lab: SwitchLab,
) -> None:
    """It had written a text that was deleted before it could look again."""
    dataset = lab.dataset()
    gone = lab.add(dataset, "gone", lines(3, "gone"))
    lab.add(dataset, "kept", lines(3, "red"))
    lab.settle()
    lab.change(dataset, **TO_OTHER)

    def delete_and_die(_points: object) -> None:
        lab.delete(dataset, gone)
        dies()

    lab.index.after_upsert = delete_and_die
    run = pytest.raises(Killed)
    with run:
        lab.jobs()
    lab.index.after_upsert = lambda points: None
    lab.restart()
    lab.settle()
    assert lab.switch(dataset)["status"] == "completed"
    assert lab.count(OTHERS, dataset) == 3
    lab.later()
    assert lab.healthy()


def test_points_that_the_new_space_lost_are_written_before_it_answers(lab: SwitchLab) -> None:
    dataset = lab.dataset()
    lab.add(dataset, "a", lines(6, "red"))
    lab.settle()
    lab.change(dataset, **TO_OTHER)

    def lose_the_first_batch(points: Sequence[Any]) -> None:
        if len(points) == 2:  # the second batch
            lab.resources.index.delete_dataset(OTHERS, uuid.UUID(dataset))
            lab.index.after_upsert = lambda points: None

    lab.index.after_upsert = lose_the_first_batch
    lab.jobs()
    assert lab.switch(dataset)["status"] == "completed"
    assert lab.count(OTHERS, dataset) == 6
    assert lab.healthy()


def test_tokens_and_rows_are_those_of_the_document(sqlite_lab: SwitchLab) -> None:
    lab = sqlite_lab
    dataset = lab.dataset()
    document = lab.add(dataset, "a", lines(3, "red"))
    lab.settle()
    with reading(lab.resources.sessions) as session:
        before = session.scalars(select(Segment.id).order_by(Segment.position)).all()
    lab.change(dataset, **TO_OTHER)
    lab.settle()
    assert [segment.id for segment in lab.segments(document)] == before
    assert [segment.hit_count for segment in lab.segments(document)] == [0, 0, 0]
