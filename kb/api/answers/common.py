"""What several nouns share."""

from __future__ import annotations

PAGE = """
has_more  flag  Whether there are more rows; of documents and segments: whether the page is full.
limit  integer  Rows per page.
total  integer  Rows on all pages.
page  integer  1-based.
"""
"""Of every page of a list."""

OBJECTS: dict[str, str] = {
    "Error": """
code  text  For programs to branch on.
message  text  For people: the value that was refused, and what would work instead.
status  integer  The HTTP status.
""",
    "SegmentsError": "error  text  What is wrong with the segments that were sent.\n",
    "ExternalError": """
error_code  integer  1001 bad header, 1002 wrong key, 2001 no such knowledge base, else the status.
error_msg  text  For people.
""",
    "Success": "result  text  success.\n",
}
"""Name -> its keys, as `kb.api.answers.notation` reads them."""
