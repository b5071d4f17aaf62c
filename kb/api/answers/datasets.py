"""Answers of the routes of datasets, their tags, their fields and their archives."""

from __future__ import annotations

from kb.api.answers.common import PAGE

_DATASET = """
id  uuid  Of the dataset.
name  text  Unique in the workspace.
description  text?  What it is for.
provider  vendor|external  Whether it is filled here, or asks an external knowledge service.
permission  only_me|all_team_members|partial_members  Who sees it in lists.
data_source_type  text?  Of its documents; null before the first.
indexing_technique  text?  high_quality, economy, or null before the first document.
app_count  integer  Always 0.
document_count  integer  Documents.
word_count  integer  Characters of all segments.
created_by  uuid  Owner of the workspace.
author_name  text?  Name of the owner.
created_at  time  When it was made.
updated_by  uuid?  Who changed it last.
updated_at  time  When it was changed last.
embedding_model  text?  Name of its embedding model.
embedding_model_provider  text?  Provider of its embedding model.
embedding_available  flag?  Whether that model is there; null right after a change.
retrieval_model_dict  RetrievalModel  How it is searched when a query does not say.
summary_index_setting  object?  Kept as it was sent.
tags  [DatasetTag]  Tags that it carries.
doc_form  text?  text_model, hierarchical_model or qa_model; null before the first document.
external_knowledge_info  object?  Of an external dataset: where it asks.
external_retrieval_model  object?  top_k, score_threshold and score_threshold_enabled.
doc_metadata  [DatasetField]  Its metadata fields; with the built-in ones while these are on.
built_in_field_enabled  flag  Whether documents have the built-in fields.
pipeline_id  text?  Always null.
runtime_mode  text?  Always general.
chunk_structure  text?  Always null.
icon_info  object?  Always null.
is_published  flag  Always false.
total_documents  integer  As document_count.
total_available_documents  integer  Documents that answer queries.
enable_api  flag  Whether keys may reach it.
is_multimodal  flag  Always false.
"""

OBJECTS: dict[str, str] = {
    "Switch": """
id  uuid  Of the switch.
dataset_id  uuid  Of the dataset.
status  text  How it stands.
from  object  indexing_technique, embedding_model and embedding_model_provider before.
to  object  The same after.
done  integer  Texts that were taken over.
total  integer  Texts in all.
error  text?  Why it failed.
error_code  text?  The same for programs.
failures  integer  Attempts that failed.
retry_at  time?  When it is tried again.
created_by  uuid  Who asked for it.
created_at  time  When.
progress_at  time?  When it moved last.
finished_at  time?  When it ended.
""",
    "SwitchPage": PAGE + "data  [Switch]  The page's switches, newest first.\n",
    "RetrievalModel": """
search_method  semantic_search|full_text_search|hybrid_search|keyword_search  How to search.
reranking_enable  flag  Whether hits are reordered.
reranking_mode  text?  reranking_model or weighted_score.
reranking_model  object?  reranking_provider_name and reranking_model_name.
weights  object?  Of a hybrid search: vector_setting and keyword_setting.
top_k  integer  Hits at most.
score_threshold_enabled  flag  Whether score_threshold counts.
score_threshold  number?  Only hits that score at least this.
""",
    "DatasetTag": """
id  uuid  Of the tag.
name  text  Of the tag.
type  text  knowledge.
""",
    "DatasetField": """
id  text  Of the field, or built-in.
name  text  Of the field.
type  string|number|time  Of its values.
""",
    "Dataset": _DATASET
    + "partial_member_list?  [uuid]  Who sees it, with permission partial_members.\n",
    "ImportedDataset": _DATASET
    + """
partial_member_list?  [uuid]  Who sees it, with permission partial_members.
imported  Imported  What came with the archive.
""",
    "Imported": """
documents  integer  Documents.
indexed  integer  Those that answer already.
queued  integer  Those that are indexed now.
segments  integer  Segments.
vectors  integer  Vectors that were taken over.
""",
    "DatasetPage": PAGE + "data  [Dataset]  The page's datasets, newest first.\n",
    "Tag": """
id  uuid  Of the tag.
name  text  Unique in the workspace.
type  text  knowledge.
binding_count  text?  How many datasets carry it; a text.
""",
    "TagsOfDataset": """
data  [TagName]  The tags, by name.
total  integer  How many.
""",
    "TagName": """
id  uuid  Of the tag.
name  text  Of the tag.
""",
    "Field": """
id  uuid  Of the field.
name  text  Unique in the dataset.
type  string|number|time  Of its values.
""",
    "FieldCount": """
id  uuid  Of the field.
name  text  Unique in the dataset.
type  string|number|time  Of its values.
count  integer  Documents that have it.
""",
    "FieldList": """
doc_metadata  [FieldCount]  The dataset's own fields, oldest first.
built_in_field_enabled  flag  Whether documents have the built-in ones.
""",
    "BuiltInField": """
name  text  Of the field.
type  string|number|time  Of its values.
""",
    "BuiltInFields": "fields  [BuiltInField]  The built-in fields.\n",
}
"""Name -> its keys, as `kb.api.answers.notation` reads them."""

ANSWERS: dict[str, str] = {
    "get /v1/switches": "SwitchPage",
    "get D/switch": "Switch",
    "delete D/switch": "Switch",
    "post /v1/datasets": "Dataset",
    "get /v1/datasets": "DatasetPage",
    "get D": "Dataset",
    "patch D": "Dataset",
    "delete D": "",
    "get D/export": "application/zip",
    "post /v1/datasets/import": "ImportedDataset",
    "get /v1/datasets/tags": "[Tag]",
    "post /v1/datasets/tags": "Tag",
    "patch /v1/datasets/tags": "Tag",
    "delete /v1/datasets/tags": "",
    "post /v1/datasets/tags/binding": "",
    "post /v1/datasets/tags/unbinding": "",
    "get D/tags": "TagsOfDataset",
    "post D/tags": "TagsOfDataset",
    "post D/metadata": "Field",
    "get D/metadata": "FieldList",
    "patch D/metadata/{metadata_id}": "Field",
    "delete D/metadata/{metadata_id}": "",
    "get /v1/datasets/metadata/built-in": "BuiltInFields",
    "get D/metadata/built-in": "BuiltInFields",
    "post D/metadata/built-in/{action}": "Success",
    "post D/documents/metadata": "Success",
}
"""Method and path (`D`, `C`: of a dataset, a document) -> a type, a media type, or nothing."""
