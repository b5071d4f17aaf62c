"""Documents of questions and answers: whether they can be made of a file at all."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy.orm import Session

from kb.documents import Upload
from kb.errors import ProviderNotInitialized
from kb.models import DocForm, Document, ModelType, ProcessRule
from kb.process_rules import qa_rules_of
from kb.resources import Resources
from pipelines.errors import ExtractionError
from pipelines.node import RunContext
from pipelines.nodes.chunk.qa_text import holds_pairs
from pipelines.nodes.extract import Extract, identify
from pipelines.types import Blob

_READ_AT_ONCE = frozenset(("txt", "md"))
_LOOK_BYTES = 1_000_000
"""Plain texts up to this size are looked at while the client waits."""


def check_source(
    session: Session, document: Document, upload: Upload, resources: Resources
) -> None:
    """Refuse a file of a `qa_model` document that would need a chat model where there is none.

    What only a look into a PDF, HTML or Word file or a large text can tell shows when it is
    ingested.

    Raises:
        ProviderNotInitialized: its pairs would have to be written, and no model can.
    """
    if document.doc_form is not DocForm.QA:
        return
    rule = session.get(ProcessRule, document.process_rule_id)
    asked = qa_rules_of(rule.rules if rule else None)
    if asked.source in ("table", "marked"):
        return
    if asked.source == "auto" and _may_have_pairs(upload):
        return
    try:
        resources.models.choose(ModelType.CHAT, asked.provider, asked.model)
    except ProviderNotInitialized as exc:
        raise ProviderNotInitialized(
            f"questions and answers of {document.name!r} would have to be written by a chat model: "
            f"{exc.message}. Or send a table of questions and answers (CSV, TSV, XLSX, XLS), or a "
            "text that marks them (Q1: ... A1: ...)"
        ) from exc


def _may_have_pairs(upload: Upload) -> bool:
    """Whether the file is a table, a text with marked pairs, or not to be told so fast."""
    blob = Blob(upload.data, upload.name, upload.media_type, is_text=upload.is_text)
    try:
        if len(upload.data) > _LOOK_BYTES or identify(blob) not in _READ_AT_ONCE:
            return True
        return holds_pairs(Extract().run(replace(blob, is_text=True), RunContext()).text)
    except ExtractionError:
        return True  # what is wrong with the file is told when it is ingested
