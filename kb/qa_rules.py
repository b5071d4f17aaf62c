"""How documents of questions and answers are read: `rules.qa` of a process rule."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints


def _column(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(int(value)) if float(value).is_integer() else str(value)
    return value


def _switch(value: Any) -> Any:
    return {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value


Column = Annotated[str, StringConstraints(max_length=255), BeforeValidator(_column)]


class QARules(BaseModel):
    """Where questions and answers come from, in a process rule of `qa_model` documents."""

    model_config = ConfigDict(extra="ignore")

    source: Literal["auto", "table", "marked", "written"] = Field(
        default="auto",
        description="`table`: a row is a pair (CSV, TSV, XLSX, XLS); `marked`: the text has the "
        "pairs, as `Q1: ... A1: ...`; `written`: a chat model writes them; `auto`: what fits the "
        "file.",
    )
    question_column: Column = Field(
        default="",
        description="Name of the table's column, or its position from 0; empty: the one with a "
        "usual name, else the first.",
        examples=["question"],
    )
    answer_column: Column = Field(
        default="",
        description="As question_column; empty: the one with a usual name, else the second.",
        examples=["answer"],
    )
    header: Annotated[Literal["auto", "yes", "no"], BeforeValidator(_switch)] = Field(
        default="auto", description="Whether the table has a header; true and false are taken, too."
    )
    provider: Annotated[str, StringConstraints(max_length=255)] | None = Field(
        default=None, description="Of the chat model that writes; null: any."
    )
    model: Annotated[str, StringConstraints(max_length=255)] | None = Field(
        default=None, description="The chat model that writes; null: the first that is configured."
    )
