"""The registry: which models there are, their adapters made once, changes noticed."""

from __future__ import annotations

import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from sqlalchemy import delete, update

from kb.db import transaction
from kb.errors import Misconfigured, ProviderNotInitialized
from kb.model_registry import Makers, ModelRecord, ModelRegistry
from kb.models import ConfiguredModel, ModelKind, ModelType
from kb.resources import Resources, find_embedder
from pipelines.types import Vector, Vectors


class NamedModel:
    """An embedder of one space, named after its model; it remembers whether it was closed."""

    dim = 2
    max_tokens = 8

    def __init__(self, model: str, api_key: str | None = None) -> None:
        self.id, self.api_key, self.closed = f"space-{model}", api_key, False

    def for_space(self, name: str) -> NamedModel | None:
        return self if name == self.id else None

    def embed_documents(self, texts: Any) -> Vectors:
        return np.ones((len(texts), 2), dtype=np.float32)

    def embed_query(self, text: str) -> Vector:
        return np.ones(2, dtype=np.float32)

    def count_tokens(self, texts: Any) -> list[int]:
        return [1 for _ in texts]

    def close(self) -> None:
        self.closed = True


@dataclass
class World:
    """A registry over a real database, whose adapters are counted."""

    resources: Resources
    made: list[NamedModel]
    open: Callable[..., ModelRegistry]

    def add(self, model: str, type: ModelType = ModelType.EMBEDDING, **values: Any) -> uuid.UUID:
        row = ConfiguredModel(
            workspace_id=self.resources.workspace_id,
            type=type,
            provider=values.pop("provider", "acme"),
            model=model,
            kind=ModelKind.OPENAI,
            options={},
            **values,
        )
        with transaction(self.resources.sessions) as session:
            session.add(row)
        return row.id

    def change(self, id: uuid.UUID, **values: Any) -> None:
        with transaction(self.resources.sessions) as session:
            session.execute(
                update(ConfiguredModel)
                .where(ConfiguredModel.id == id)
                .values(revision=ConfiguredModel.revision + 1, **values)
            )


@pytest.fixture
def world(resources: Resources) -> World:
    made: list[NamedModel] = []

    def make(record: ModelRecord, api_key: str | None) -> Any:
        if record.model == "broken":
            raise Misconfigured("its URL is none")
        made.append(NamedModel(record.model, api_key))
        return made[-1]

    def open_registry(refresh_s: float = 3600.0) -> ModelRegistry:
        return ModelRegistry(
            resources.sessions,
            resources.keyring,
            resources.workspace_id,
            Makers(make, make, make),
            default=NamedModel("default"),  # type: ignore[arg-type]
            record=ModelRecord(None, ModelType.EMBEDDING, "own", "default", ModelKind.LOCAL),
            refresh_s=refresh_s,
        )

    return World(resources, made, open_registry)


def test_without_names_the_model_of_the_settings_embeds(world: World) -> None:
    world.add("other")
    registry = world.open()
    assert registry.embedder().id == "space-default"
    assert registry.embedder("", "").id == "space-default"
    assert registry.embedder("own", "default").id == "space-default"
    assert registry.embedder(None, "other").id == "space-other"
    assert registry.embedder("acme", None).id == "space-other"
    assert [r.name for r in registry.records(ModelType.EMBEDDING)] == [
        ("own", "default"),
        ("acme", "other"),
    ]


def test_an_unknown_model_is_refused_with_the_list_of_those_that_are_known(world: World) -> None:
    world.add("other")
    registry = world.open()
    with pytest.raises(
        ProviderNotInitialized,
        match=r"'big' of provider 'acme' is not.*'default' of provider 'own', 'other' of provider",
    ):
        registry.embedder("acme", "big")
    with pytest.raises(ProviderNotInitialized, match=r"chat model is not.*kb models add"):
        registry.chat_model()
    with pytest.raises(ProviderNotInitialized, match="rerank model 'x' is not configured, nor any"):
        registry.reranker("acme", "x")


def test_types_do_not_mix_and_the_oldest_chat_model_is_the_default(world: World) -> None:
    world.add("small", ModelType.CHAT)
    world.add("large", ModelType.CHAT)
    world.add("judge", ModelType.RERANK)
    registry = world.open()
    assert registry.chat_model() is registry.chat_model("acme", "small")
    assert registry.reranker(None, "judge") is not None
    with pytest.raises(ProviderNotInitialized):
        registry.embedder(None, "judge")


def test_a_model_is_made_when_it_is_asked_for_and_once(world: World) -> None:
    world.add("other")
    registry = world.open()
    registry.records(ModelType.EMBEDDING)
    assert world.made == []
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(registry.embedder(None, "other")))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(world.made) == 1
    assert found == world.made * 8


def test_what_this_process_changed_is_in_force_at_once(world: World) -> None:
    registry = world.open()
    with pytest.raises(ProviderNotInitialized):
        registry.embedder(None, "other")
    added = world.add("other")
    registry.changed()
    first = registry.embedder(None, "other")
    world.change(added, options={"url": "http://elsewhere"})
    registry.changed()
    assert registry.embedder(None, "other") is not first
    assert not world.made[0].closed, "somebody may be in the middle of a call"
    with transaction(world.resources.sessions) as session:
        session.execute(delete(ConfiguredModel))
    registry.changed()
    with pytest.raises(ProviderNotInitialized):
        registry.embedder(None, "other")
    registry.close()
    assert all(model.closed for model in world.made)


def test_what_another_process_changed_is_noticed_after_the_refresh(world: World) -> None:
    registry = world.open(refresh_s=0.0)
    added = world.add("other")
    first = registry.embedder(None, "other")
    world.change(added, options={})
    assert registry.embedder(None, "other") is not first


def test_a_key_reaches_its_model_in_clear_and_a_strange_one_names_the_model(world: World) -> None:
    world.add("other", api_key=world.resources.keyring.seal("sk-1"))
    world.add("strange", api_key="sealed:1:gAAAA")
    registry = world.open()
    registry.embedder(None, "other")
    assert world.made[0].api_key == "sk-1"
    with pytest.raises(ProviderNotInitialized, match=r"'api_key' of the model 'strange'.*none of"):
        registry.embedder(None, "strange")


def test_a_space_leads_to_the_model_that_fills_it_past_one_that_is_broken(world: World) -> None:
    world.add("broken")
    world.add("other")
    registry = world.open()
    assert registry.embedder_of_space("space-default").id == "space-default"
    assert registry.embedder_of_space("space-other").id == "space-other"
    with pytest.raises(ProviderNotInitialized, match="'space-gone'"):
        registry.embedder_of_space("space-gone")


def test_the_seam_gives_a_dataset_its_embedder_and_its_space(resources: Resources) -> None:
    found = find_embedder(resources, None, None)
    assert (found.provider, found.model) == resources.default_embedder_name
    assert resources.embedders(found.space.name) is found.embedder
    assert found.space.dim == 384


_FORKS = """
import os, sys
from kb.model_registry import Makers, ModelRecord, ModelRegistry
from kb.models import ModelKind, ModelType
made = []
def make(record, key):
    made.append(os.getpid())
    return object()
record = ModelRecord(None, ModelType.CHAT, "a", "b", ModelKind.OPENAI)
registry = ModelRegistry(None, None, None, Makers(make, make, make), default=None, record=record)
parents = registry.chat_model_of(record)
assert registry.chat_model_of(record) is parents
child = os.fork()
if child == 0:
    own = registry.chat_model_of(record)
    os._exit(0 if own is not parents and made[-1] == os.getpid() else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_makes_models_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", _FORKS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
