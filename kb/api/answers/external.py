"""Answers of the routes of external knowledge services."""

from __future__ import annotations

from kb.api.answers.common import PAGE

OBJECTS: dict[str, str] = {
    "ExternalApi": """
id  uuid  Of the service.
tenant_id  uuid  Of the workspace.
name  text  What people call it.
description  text?  For people.
settings  object  endpoint and api_key; the key is hidden.
dataset_bindings  [BoundDataset]  Datasets that ask it.
created_by  uuid  Owner of the workspace.
created_at  moment  When it was made.
""",
    "BoundDataset": """
id  uuid  Of the dataset.
name  text  Of the dataset.
""",
    "ExternalApiPage": PAGE + "data  [ExternalApi]  The page's services, newest first.\n",
    "ExternalApiUse": """
is_using  flag  Whether datasets are bound to it.
count  integer  How many.
""",
    "Probe": """
result  text  success.
status  integer  Of its answer.
""",
    "ForeignRecord": """
content  text  Of the passage.
title  text?  Of its document.
score  number?  As the service gave it.
metadata  object?  As the service gave it.
""",
    "ForeignFound": """
query  Query  What was asked.
records  [ForeignRecord]  Best first.
""",
}
"""Name -> its keys, as `kb.api.answers.notation` reads them."""

_API = "/v1/datasets/external-knowledge-api"
ANSWERS: dict[str, str] = {
    f"post {_API}": "ExternalApi",
    f"get {_API}": "ExternalApiPage",
    f"get {_API}/{{api_id}}": "ExternalApi",
    f"patch {_API}/{{api_id}}": "ExternalApi",
    f"delete {_API}/{{api_id}}": "",
    f"get {_API}/{{api_id}}/use-check": "ExternalApiUse",
    f"post {_API}/{{api_id}}/probe": "Probe",
    "post /v1/datasets/external": "Dataset",
    "post D/external-hit-testing": "ForeignFound",
}
"""Method and path (`D`, `C`: of a dataset, a document) -> a type, a media type, or nothing."""
