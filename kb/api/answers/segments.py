"""Answers of the routes of segments, child chunks and hand edits."""

from __future__ import annotations

from kb.api.answers.common import PAGE

SEGMENT = """
id  uuid  Of the segment.
position  integer  1-based in the document.
document_id  uuid  Its document.
content  text  Its text; the question of a document of questions and answers.
sign_content  text  As content.
answer  text?  The answer, of a document of questions and answers.
word_count  integer  Characters of content and answer.
tokens  integer  Embedding tokens; 0 with technique economy.
keywords  [text]  Words that it is found by beside its text.
index_node_id  uuid?  Of its entry in the index.
index_node_hash  text?  Hash of its text.
hit_count  integer  How often applications found it.
enabled  flag  Whether it may answer queries.
disabled_at  time?  When it was switched off.
disabled_by  uuid?  Who did.
status  text  completed, or indexing until its vectors are there.
created_by  uuid?  Owner of the workspace; null of what another service holds.
created_at  time?  When it was made; null of what another service holds.
indexing_at  time?  When its indexing began.
completed_at  time?  When its indexing was complete.
error  text?  Why its indexing failed.
stopped_at  time?  When its indexing was stopped.
source  object  Ours: start and end in the extracted text, and page, headings, sheet or rows.
"""
"""What every segment has."""

OBJECTS: dict[str, str] = {
    "ChildChunk": """
id  uuid  Of the child chunk.
segment_id  uuid  Its segment.
content  text  Its text.
position  integer  1-based in the segment.
word_count  integer  Characters.
type  automatic|customized  Cut by the rule, or written by hand.
created_at  time  When it was made.
updated_at  time  When it was changed last.
""",
    "Segment": SEGMENT
    + """
updated_at  time  When it was changed last.
updated_by  uuid?  Who did.
child_chunks  [ChildChunk]  Of a hierarchical document, unless the whole document is one segment.
attachments  [any]  Always empty.
summary  text?  Always null.
""",
    "SegmentPage": PAGE
    + """
data  [Segment]  The page's segments, in order.
doc_form  text  Of the document.
""",
    "NewSegments": """
data  [Segment]  The segments that were added.
doc_form  text  Of the document.
""",
    "OneSegment": """
data  Segment  The segment.
doc_form  text  Of the document.
""",
    "AppliedOverlay": """
data  Segment?  The segment; null when the edit deleted it.
doc_form?  text  Of the document.
""",
    "OneChildChunk": "data  ChildChunk  The child chunk.\n",
    "ChildChunkPage": """
data  [ChildChunk]  The page's child chunks, in order.
total  integer  Rows on all pages.
total_pages  integer  Pages.
page  integer  1-based.
limit  integer  Rows per page.
""",
    "Overlay": """
id  uuid  Of the hand edit.
kind  text  What was done: an edit, addition or deletion, of a segment or a child chunk.
state  active|dormant|conflict  Whether it is in force.
segment_id  uuid  The segment that it was made on.
child_chunk_id  uuid?  The child chunk that it was made on.
original  text?  The text that it was made on.
content  text?  The text that it says.
answer  text?  The answer that it says.
keywords  [text]  The keywords that it says.
child_chunks  any  The child chunks that it says, or null.
suggested_segment_id  uuid?  Of a conflict: the segment that holds most of that text.
created_by  uuid  Who made it.
created_at  time  When it was made.
updated_at  time  When it was changed last.
""",
    "SegmentImport": """
id  uuid  Of the import.
document_id  uuid  Whose segments the rows become.
name  text  Of the file.
state  waiting|completed|error  Whether the rows are segments; in error, none of them is.
rows  integer  Rows of the file that become segments.
embedded  integer  Rows that are embedded.
added  integer  Segments that were added: all rows, or none.
warnings  [text]  What a reader should know, such as a column that was left out.
error  text?  Why nothing was added.
created_at  time  When it came.
finished_at  time?  When it was completed, or given up.
""",
    "OverlayPage": PAGE + "data  [Overlay]  The page's hand edits, oldest first.\n",
}
"""Name -> its keys, as `kb.api.answers.notation` reads them."""

ANSWERS: dict[str, str] = {
    "post C/segments": "NewSegments",
    "get C/segments": "SegmentPage",
    "get C/segments/{segment_id}": "OneSegment",
    "post C/segments/{segment_id}": "OneSegment",
    "delete C/segments/{segment_id}": "",
    "post C/segments/{segment_id}/child_chunks": "OneChildChunk",
    "get C/segments/{segment_id}/child_chunks": "ChildChunkPage",
    "patch C/segments/{segment_id}/child_chunks/{child_chunk_id}": "OneChildChunk",
    "delete C/segments/{segment_id}/child_chunks/{child_chunk_id}": "",
    "post C/segments/import": "SegmentImport",
    "get C/segments/import/{import_id}": "SegmentImport",
    "get C/overlays": "OverlayPage",
    "post C/overlays/{overlay_id}/apply": "AppliedOverlay",
    "delete C/overlays/{overlay_id}": "",
}
"""Method and path (`D`, `C`: of a dataset, a document) -> a type, a media type, or nothing."""
