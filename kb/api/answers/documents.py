"""Answers of the routes of documents and files."""

from __future__ import annotations

from kb.api.answers.common import PAGE

_DOCUMENT = """
id  uuid  Of the document.
position  integer  1-based in the dataset.
data_source_type  text  upload_file.
dataset_process_rule_id  uuid?  Of its process rule.
name  text  Of the document.
created_from  text  api.
created_by  uuid  Owner of the workspace.
created_at  time  When it was made.
tokens  integer?  Embedding tokens; null or 0 until indexed.
indexing_status  text  waiting, parsing, cleaning, splitting, indexing, completed, error or paused.
error  text?  Why it failed.
error_code  text?  The same for programs (ours).
enabled  flag  Whether it may answer queries.
disabled_at  time?  When it was switched off.
disabled_by  uuid?  Who did.
archived  flag  Archived documents answer no queries.
display_status  text?  queuing, indexing, paused, error, available, disabled or archived.
hit_count  integer  How often its segments were found by applications.
doc_form  text_model|hierarchical_model|qa_model  Form of its segments.
summary_index_status  text?  Always null.
need_summary  flag?  Always false.
"""

OBJECTS: dict[str, str] = {
    "File": """
id  uuid  Of the file.
name  text  As it was sent.
size  integer  Bytes.
extension  text  In small letters, without a dot.
mime_type  text?  As it was sent.
created_by  uuid  Owner of the workspace.
created_at  number  Unix seconds.
""",
    "PipelineFile": """
id  uuid  Of the file.
name  text  As it was sent.
size  integer  Bytes.
extension  text  In small letters, without a dot.
mime_type  text  As it was sent.
created_by  uuid  Owner of the workspace.
created_at  moment  When it was sent.
""",
    "LinkedFile": """
id  uuid  Of the file.
name  text  As it was sent.
size  integer  Bytes.
extension  text  In small letters, without a dot.
mime_type  text?  As it was sent.
created_by  uuid  Owner of the workspace.
created_at  number  Unix seconds.
url  text  Opens it without a key, for some minutes.
download_url  text  The same, to be saved.
""",
    "Link": "url  text  Saves the file; needs no key, for some minutes.\n",
    "DocumentMetadata": """
id  text  Of the field, or built-in.
name  text  Of the field.
type  string|number|time  Of the value.
value  any  A text, a number or null.
""",
    "Document": _DOCUMENT
    + """
data_source_info  object  upload_file_id: its file.
data_source_detail_dict  object  upload_file: its file.
word_count  integer?  Characters of its segments.
doc_metadata  [DocumentMetadata]  Its metadata.
""",
    "DocumentDetail": _DOCUMENT
    + """
data_source_info  object  upload_file: its file.
dataset_process_rule  object  mode and rules that new documents get.
document_process_rule  object  id, dataset_id, mode and rules of this one; empty when it has none.
completed_at  time?  When its indexing was complete.
updated_at  time?  When it was changed last.
indexing_latency  number?  Seconds from start to completion.
error_stage  text?  Ours: where it failed.
attempts  integer  Ours: how often it was tried.
next_attempt_at  time?  Ours: when it is tried again.
doc_type?  text?  Always null.
doc_metadata?  [DocumentMetadata]?  Its metadata; null when it has none.
segment_count  integer  Segments.
average_segment_length  integer  Characters.
doc_language  text?  Of its text.
version  integer  Ours: the one that answers; 0: none yet.
pending_version  integer?  Ours: the one in preparation.
warnings  [any]  Ours: what was noticed while it was read.
pipeline_timings  [any]  Ours: seconds per step.
""",
    "DocumentMetadataOnly": """
id  uuid  Of the document.
doc_type  text?  Always null.
doc_metadata  [DocumentMetadata]?  Its metadata; null when it has none.
""",
    "DocumentPage": PAGE + "data  [Document]  The page's documents, newest first.\n",
    "Accepted": """
document  Document  As it stands now; it is indexed in the background.
batch  text  What to ask indexing-status with: 20 digits.
""",
    "Progress": "data  [DocumentProgress]  One entry per document of the batch.\n",
    "DocumentProgress": """
id  uuid  Of the document.
indexing_status  text  Ends as completed or error.
processing_started_at  time?  When work began.
parsing_completed_at  time?  When its text was read.
cleaning_completed_at  time?  When it was cleaned.
splitting_completed_at  time?  When it was cut.
completed_at  time?  When it was complete.
paused_at  time?  When it was paused.
error  text?  Why it failed.
stopped_at  time?  When it was cancelled.
completed_segments  integer  Segments that are indexed.
total_segments  integer  Segments in all.
""",
    "Steered": """
action  text  As asked for.
matched  integer  Documents that match the filter.
affected  integer  Those that were changed.
document_ids  [uuid]  Their ids.
documents  [SteeredDocument]  The same with names.
""",
    "SteeredDocument": """
id  uuid  Of the document.
dataset_id  uuid  Of its dataset.
name  text  Of the document.
batch  text  What to ask indexing-status with.
""",
    "Report": """
id  uuid  Of the document.
name  text  Of the document.
version  integer  That this report is of.
state  text  live, replaced, given_up, or the indexing status.
display_status  text?  Of the document.
file  File?  That was read.
process_rule  object?  mode and rules that it was cut by.
characters_extracted  integer?  Characters of the text that was read.
pages  object?  Of a PDF: total, and the numbers of empty and damaged pages.
table_rows  object?  Of tables: rows in and out.
segments  integer?  Segments.
child_chunks  integer?  Child chunks.
tokens  integer?  Embedding tokens.
word_count  integer?  Characters of the segments.
stages  [any]  Seconds per step, all runs together.
attempts  integer  Runs.
runs  [any]  Each run with its outcome and its stages.
error  object?  code, message, stage and next_attempt_at, if it failed.
errors  [any]  Errors of single runs.
warnings  [any]  What was noticed while it was read.
conflicts  [any]  Hand edits that could not be taken over.
""",
}
"""Name -> its keys, as `kb.api.answers.notation` reads them."""

ANSWERS: dict[str, str] = {
    "post D/document/create-by-text": "Accepted",
    "post D/document/create-by-file": "Accepted",
    "post C/update-by-text": "Accepted",
    "patch C": "Accepted",
    "get D/documents": "DocumentPage",
    "get C": "DocumentDetail or DocumentMetadataOnly",
    "delete C": "",
    "get C/text": "text/plain; charset=utf-8",
    "get D/documents/{batch}/indexing-status": "Progress",
    "patch D/documents/status/{action}": "Success",
    "get C/upload-file": "LinkedFile",
    "get C/download": "Link",
    "post D/documents/download-zip": "application/zip",
    "get /files/{file_id}": "*/*",
    "post /v1/documents/{action}": "Steered",
    "post C/pause": "Accepted",
    "post C/resume": "Accepted",
    "post C/retry": "Accepted",
    "post C/cancel": "Accepted",
    "post C/rechunk": "Accepted",
    "post C/rename": "Accepted",
    "get C/report": "Report",
    "post /v1/datasets/pipeline/file-upload": "PipelineFile",
    "get D/pipeline/datasource-plugins": "[any]",
    "post D/pipeline/datasource/nodes/{node_id}/run": "object",
    "post D/pipeline/run": "object",
}
"""Method and path (`D`, `C`: of a dataset, a document) -> a type, a media type, or nothing."""
