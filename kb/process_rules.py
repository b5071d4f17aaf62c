"""Process rules: how a document asks to be cleaned and split, and the graph that does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from kb.errors import InvalidParam
from kb.models import DocForm, IndexingTechnique
from kb.qa_rules import QARules
from pipelines.errors import NodeError
from pipelines.nodes.chunk import MIN_CHUNK_CHARS, check_limits
from pipelines.nodes.chunk.parent_child import ParentChildChunker

AUTOMATIC_RULES: dict[str, Any] = {
    "pre_processing_rules": [
        {"id": "remove_extra_spaces", "enabled": True},
        {"id": "remove_urls_emails", "enabled": False},
    ],
    "segmentation": {"delimiter": "\n", "max_tokens": 500, "chunk_overlap": 50},
}
"""As the contract stores and returns them (`delimiter`, not `separator`)."""

PLACEHOLDER_RULE: dict[str, Any] = {
    "mode": "custom",
    "rules": AUTOMATIC_RULES
    | {"segmentation": {"delimiter": "\n", "max_tokens": 1024, "chunk_overlap": 50}},
}
"""Shown for a dataset that has no rule yet."""


class PreProcessingRule(BaseModel):
    """One cleaning step, on or off; unknown ids are accepted and have no effect."""

    model_config = ConfigDict(use_attribute_docstrings=True)
    id: str
    """remove_extra_spaces or remove_urls_emails; others have no effect."""
    enabled: bool
    """Whether the step is done."""


class Segmentation(BaseModel):
    """Where to cut; lengths are characters, whatever the wire name says."""

    model_config = ConfigDict(extra="ignore", use_attribute_docstrings=True)
    separator: str = "\n"
    """Where to cut; taken literally."""
    max_tokens: int
    """Characters of a piece at most."""
    chunk_overlap: int = 0
    """Characters that a piece repeats of the one before."""

    @model_validator(mode="before")
    @classmethod
    def _accept_delimiter(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "separator" not in value and "delimiter" in value:
            return {**value, "separator": value["delimiter"]}
        return value


class Rules(BaseModel):
    """The rules of a custom or hierarchical process rule; `qa` counts for questions and answers
    (ours, beyond the contract), and then the others may be left out."""

    model_config = ConfigDict(extra="ignore", use_attribute_docstrings=True)
    pre_processing_rules: list[PreProcessingRule] | None = None
    """Steps of cleaning."""
    segmentation: Segmentation | None = None
    """How to cut segments, or parents."""
    parent_mode: Literal["paragraph", "full-doc"] | None = None
    """Of hierarchical: each piece is a parent, or the whole document is one."""
    subchunk_segmentation: Segmentation | None = None
    """Of hierarchical: how to cut children."""
    qa: QARules | None = None
    """Of questions and answers: where they stand."""

    @field_validator("pre_processing_rules")
    @classmethod
    def _last_entry_of_an_id_counts(
        cls, rules: list[PreProcessingRule] | None
    ) -> list[PreProcessingRule] | None:
        return list({rule.id: rule for rule in rules}.values()) if rules else rules

    def enables(self, rule_id: str) -> bool:
        """Whether a cleaning step is on."""
        return {r.id: r.enabled for r in self.pre_processing_rules or []}.get(rule_id, False)


class ProcessRuleIn(BaseModel):
    """A process rule as a request states it."""

    model_config = ConfigDict(extra="ignore", use_attribute_docstrings=True)
    mode: Literal["automatic", "custom", "hierarchical"]
    """automatic needs no rules."""
    rules: Rules | None = None
    """Of custom and hierarchical."""

    @model_validator(mode="before")
    @classmethod
    def _ignore_rules_of_automatic(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and value.get("mode") == "automatic":
            return {"mode": "automatic"}
        return value

    def stored(self) -> dict[str, Any] | None:
        """The `rules` column: what was sent; the constant for `automatic`."""
        if self.mode == "automatic":
            return AUTOMATIC_RULES
        if self.rules is None:
            return None
        unsaid = {"qa"} if self.rules.qa is None else set()
        return self.rules.model_dump(mode="json", exclude=unsaid)


def validate(rule: ProcessRuleIn) -> None:
    """Refuse what could never work.

    Length bounds are checked when the document is split: they then fail that document.

    Raises:
        InvalidParam: names the missing or unusable value.
    """
    if rule.mode == "automatic":
        return
    rules = rule.rules
    if rules is None:
        raise InvalidParam(
            f"process_rule.rules is missing; mode {rule.mode!r} needs pre_processing_rules and "
            "segmentation, or send mode 'automatic'"
        )
    if rules.qa is not None and rules.pre_processing_rules is None and rules.segmentation is None:
        return
    if rules.pre_processing_rules is None:
        raise InvalidParam(
            "process_rule.rules.pre_processing_rules is missing; send [] for no cleaning"
        )
    full_doc = rule.mode == "hierarchical" and rules.parent_mode == "full-doc"
    if rules.segmentation is None:
        if full_doc:
            return
        raise InvalidParam(
            "process_rule.rules.segmentation is missing; send e.g. "
            '{"separator": "\\n", "max_tokens": 500}'
        )
    if not rules.segmentation.separator:
        raise InvalidParam(
            "process_rule.rules.segmentation.separator is empty; send e.g. '\\n', or mode "
            "'automatic'"
        )
    if rules.segmentation.max_tokens <= 0 and not full_doc:
        raise InvalidParam(
            f"process_rule.rules.segmentation.max_tokens is {rules.segmentation.max_tokens}; "
            f"choose at least {MIN_CHUNK_CHARS} (characters)"
        )


@dataclass(frozen=True)
class GraphChoice:
    """A built-in pipeline definition and its parameters."""

    definition: str
    parameters: dict[str, object]


def graph_for(
    doc_form: DocForm,
    technique: IndexingTechnique,
    mode: str,
    rules: Mapping[str, Any] | None,
    *,
    max_chunk_chars: int,
    is_table: bool = False,
    language: str = "English",
) -> GraphChoice:
    """The pipeline that a document without one of its own runs through.

    Args:
        is_table: the file has rows and columns; looked at for questions and answers only.
        language: in which a chat model writes questions and answers.
    Raises:
        NodeError: code `invalid_process_rule`; a length is out of bounds or a part is missing.
    """
    if doc_form is DocForm.HIERARCHICAL:
        return _parent_child(mode, rules, max_chunk_chars)
    if doc_form is DocForm.QA:
        return _questions(mode, rules, max_chunk_chars, is_table, language)
    definition = "general" if technique is IndexingTechnique.HIGH_QUALITY else "general_economy"
    parsed = Rules.model_validate(rules or AUTOMATIC_RULES)
    if mode == "automatic":
        return GraphChoice(definition, {"mode": "automatic", **_cleaning(parsed)})
    return GraphChoice(definition, _custom(parsed, max_chunk_chars))


def _custom(rules: Rules, max_chunk_chars: int) -> dict[str, object]:
    cut = _checked(rules.segmentation, "segmentation", max_chunk_chars)
    return {
        "mode": "custom",
        "separator": cut.separator,
        "max_chars": cut.max_tokens,
        "overlap_chars": cut.chunk_overlap,
        **_cleaning(rules),
    }


def qa_rules_of(rules: Mapping[str, Any] | None) -> QARules:
    """What stored rules say of questions and answers."""
    return Rules.model_validate(rules or AUTOMATIC_RULES).qa or QARules()


def _questions(
    mode: str,
    rules: Mapping[str, Any] | None,
    max_chunk_chars: int,
    is_table: bool,
    language: str,
) -> GraphChoice:
    asked = qa_rules_of(rules)
    if asked.source == "table" or (asked.source == "auto" and is_table):
        columns = asked.model_dump(include={"question_column", "answer_column", "header"})
        return GraphChoice("qa", columns)
    parsed = Rules.model_validate(rules or AUTOMATIC_RULES)
    parameters: dict[str, object] = {"source": asked.source, "language": language}
    if mode == "automatic" or parsed.segmentation is None:
        cleaned = parsed if parsed.pre_processing_rules is not None else Rules(**AUTOMATIC_RULES)
        return GraphChoice("qa_text", {"mode": "automatic", **parameters, **_cleaning(cleaned)})
    return GraphChoice("qa_text", {**parameters, **_custom(parsed, max_chunk_chars)})


def children_of(
    text: str, mode: str, rules: Mapping[str, Any] | None, *, max_chunk_chars: int
) -> list[str]:
    """The child chunks that a process rule makes of a parent's text.

    Raises:
        NodeError: as `graph_for`.
    """
    choice = _parent_child(mode, rules, max_chunk_chars)
    named = {n: v for n, v in choice.parameters.items() if n.startswith("child_")}
    return ParentChildChunker.model_validate(named).children_of(text)


# What the contract's clients show as defaults: a hierarchical document may come with an
# automatic rule, which says nothing of parents and children.
_DEFAULT_PARENT = Segmentation(separator="\n\n", max_tokens=1024, chunk_overlap=0)
_DEFAULT_CHILD = Segmentation(separator="\n", max_tokens=512, chunk_overlap=0)


def _parent_child(mode: str, rules: Mapping[str, Any] | None, max_chunk_chars: int) -> GraphChoice:
    parsed = Rules.model_validate(rules or AUTOMATIC_RULES)
    if mode == "automatic":
        parsed = parsed.model_copy(
            update={"segmentation": _DEFAULT_PARENT, "subchunk_segmentation": _DEFAULT_CHILD}
        )
    child = _checked(parsed.subchunk_segmentation, "subchunk_segmentation", max_chunk_chars)
    children: dict[str, object] = {
        "child_separator": child.separator,
        "child_max_chars": child.max_tokens,
        "child_overlap_chars": child.chunk_overlap,
    }
    if parsed.parent_mode == "full-doc":
        return GraphChoice("parent_child_full_doc", children)
    parent = _checked(parsed.segmentation, "segmentation", max_chunk_chars)
    return GraphChoice(
        "parent_child",
        {
            "separator": parent.separator,
            "max_chars": parent.max_tokens,
            "overlap_chars": parent.chunk_overlap,
            **children,
            **_cleaning(parsed),
        },
    )


def _cleaning(rules: Rules) -> dict[str, object]:
    return {name: rules.enables(name) for name in ("remove_extra_spaces", "remove_urls_emails")}


def _checked(part: Segmentation | None, name: str, maximum: int) -> Segmentation:
    if part is None:
        raise NodeError(
            f"process_rule.rules.{name} is missing; upload the document again with a separator and "
            "max_tokens in it",
            code="invalid_process_rule",
        )
    check_limits(part.max_tokens, part.chunk_overlap, maximum=maximum, rule=f"process_rule.{name}")
    return part
