"""Answers of the routes that retrieve, and of the history."""

from __future__ import annotations

from kb.api.answers.common import PAGE
from kb.api.answers.segments import SEGMENT

OBJECTS: dict[str, str] = {
    "FoundSegment": SEGMENT
    + "document  object  id, data_source_type, name, doc_type and doc_metadata.\n",
    "FoundChild": """
id  uuid  Of the child chunk.
content  text  Its text.
position  integer  1-based in the segment.
score  number  In [0, 1].
""",
    "Record": """
segment  FoundSegment  The segment.
child_chunks  [FoundChild]  Those that matched, best first.
score  number?  In [0, 1], higher is better.
tsne_position  any  Always null.
files  [any]  Always empty.
summary  text?  Always null.
explain?  object  Ours, with explain=true: how the score came about.
""",
    "Query": "content  text  As it was asked.\n",
    "Found": """
query  Query  What was asked.
records  [Record]  Best first.
timings_ms?  object  Ours, with explain=true: milliseconds per stage.
""",
    "ExternalRecord": """
content  text  Of the segment.
score  number  In [0, 1].
title  text  Name of the document.
metadata  object  Of the document, with document_id, segment_id, position and where it stands.
""",
    "ExternalRecords": "records  [ExternalRecord]  Best first.\n",
    "NodeItem": """
metadata  object  Where it is from: dataset, document, segment, score, position and more.
title  text  Name of the document.
files  any  Always null.
content  text  Of the segment; question and answer together.
summary  text?  Always null.
""",
    "NodeFailure": """
dataset_id  text  That could not be asked.
dataset_name  text?  Its name.
code  text  Of the error.
message  text  Of the error.
""",
    "NodeResult": """
result  [NodeItem]  Best first, as the node of a workflow gives them out.
partial  flag  Whether a dataset could not be asked.
errors  [NodeFailure]  Which, and why.
timings_ms?  object  Milliseconds per stage.
""",
    "QueryHit": """
segment_id  uuid  The segment.
score  number?  In [0, 1].
rank  integer  1-based.
""",
    "LoggedQuery": """
id  uuid  Of this entry.
dataset_id  uuid  That was asked.
call_id  uuid?  Of the call, when it asked several datasets.
query  text  As it was asked.
source  text  hit_testing, external or app.
created_by  uuid  Who asked.
created_at  time  When.
settings  object?  In force, enough to ask it again.
hits  [QueryHit]?  What was found.
latency_ms  number?  How long it took.
""",
    "LoggedQueryPage": PAGE + "data  [LoggedQuery]  The page's queries, newest first.\n",
    "QueryDifference": """
segment_id  uuid  The segment.
before  object?  score and rank then; null: it was not found.
now  object?  score and rank now; null: it is not found.
reason  text  Why.
""",
    "Replay": """
query  LoggedQuery  The entry.
hits  [QueryHit]  What is found now.
latency_ms  number  How long it took now.
identical  flag  Whether the answer is the same.
differences  [QueryDifference]  What differs.
""",
}
"""Name -> its keys, as `kb.api.answers.notation` reads them."""

ANSWERS: dict[str, str] = {
    "post D/retrieve": "Found",
    "post /retrieval": "ExternalRecords",
    "post /v1/knowledge-retrieval": "NodeResult",
    "get /v1/queries": "LoggedQueryPage",
    "get D/queries": "LoggedQueryPage",
    "get /v1/queries/{query_id}": "LoggedQuery",
    "post /v1/queries/{query_id}/replay": "Replay",
}
"""Method and path (`D`, `C`: of a dataset, a document) -> a type, a media type, or nothing."""
