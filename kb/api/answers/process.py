"""Answers of the routes of webhooks, models and the process."""

from __future__ import annotations

from kb.api.answers.common import PAGE

OBJECTS: dict[str, str] = {
    "Webhook": """
id  uuid  Of the webhook.
url  text  Where messages go.
events  [text]  What it is told of.
dataset_id  uuid?  Of which dataset; null: all.
secret_hint  text?  The first characters of its secret; null when this process cannot read it.
created_at  time  When it was made.
enabled  flag  Whether messages are sent.
disabled_at  time?  When it was switched off.
disabled_reason  text?  Why.
failing_since  time?  Since when nothing was delivered.
secret?  text  What messages are signed with; shown once, when it is made.
""",
    "WebhookList": "data  [Webhook]  Oldest first.\n",
    "Delivery": """
id  text  Of the message.
event  text  What it is about.
status  pending|delivered|failed  What came of it.
attempts  integer  How often it was sent.
created_at  time  When it was written.
last_attempt_at  time?  When it was sent last.
next_attempt_at  time?  When it is sent again.
delivered_at  time?  When it was taken.
last_status  integer?  HTTP status of the last attempt.
last_error  text?  What went wrong at it.
body  object  The message.
""",
    "DeliveryPage": PAGE + "data  [Delivery]  The page's messages, newest first.\n",
    "ContractModel": """
model  text  Send it as embedding_model or reranking_model_name.
label  object  zh_Hans and en_US.
model_type  text  As asked for.
features  [text]?  Always null.
fetch_from  predefined-model|customizable-model  Of the settings, or added.
model_properties  object  context_size, max_chunks and mode.
deprecated  flag  Always false.
status  text  active.
load_balancing_enabled  flag  Always false.
""",
    "ContractProvider": """
tenant_id  uuid  Of the workspace.
provider  text  Send it as embedding_model_provider or reranking_provider_name.
label  object  zh_Hans and en_US.
icon_small  object?  Always null.
icon_large  object?  Always null.
status  active|no-configure  Whether it can be used.
models  [ContractModel]  Its models.
""",
    "ContractModels": "data  [ContractProvider]  By provider.\n",
    "Model": """
type  text-embedding|rerank|llm  What it does.
provider  text  A name for where it comes from.
model  text  Its name.

id  text  Of the model, or settings.
source  settings|api  Where it was configured.
kind  text  What its server speaks, or local.
url  text?  Of its server.
path  text?  Of its directory.
api_key_hint  text?  The last characters of its API key.
options  object  Further options.
dimension  integer?  Of its vectors, as far as it is known.
used_by  [any]  Datasets that need it.
last_test  object?  The last trial.
created_at  time?  When it was added.
updated_at  time?  When it was changed last.
""",
    "ModelList": "data  [Model]  That of the settings first, then the oldest.\n",
    "ModelTrial": """
ok  flag  Whether it works.
latency_ms  number  How long it took.
at  time  When.
error?  object  code and message, if it does not.
dimension?  integer  Of the vectors of an embedding model.
scores?  [number]  Of a rerank model: of a text that fits, and of one that does not.
reply?  text  Of a chat model.
""",
    "Doctor": """
healthy  flag  Whether nothing was found.
deep  flag  Whether vectors, terms, texts and bytes were compared.
repaired  flag  Whether what can be healed was.
datasets  integer  Datasets that were looked at.
points  integer  Entries of the index.
unchecked_vectors  integer  Vectors whose texts are not in the embedding cache.
pending_jobs  integer  Work that is not done yet.
findings  object  Of each kind that was found: count, and the first 100.
""",
    "Status": """
at  time  Of these figures.
queues  object  Documents per queue and state.
errors  object  Documents in error by code.
jobs  object  Work that follows commits.
workers  [any]  What each does.
throughput  object  Of the last 5 minutes.
stages  [any]  Kinds of nodes, slowest first.
slowest_stage  text?  The first of them.
documents_left  integer  Documents to be indexed.
seconds_left  number?  At the present rate.
""",
    "Health": "status  text  ok or stopping.\n",
}
"""Name -> its keys, as `kb.api.answers.notation` reads them."""

ANSWERS: dict[str, str] = {
    "post /v1/webhooks": "Webhook",
    "get /v1/webhooks": "WebhookList",
    "get /v1/webhooks/{webhook_id}": "Webhook",
    "patch /v1/webhooks/{webhook_id}": "Webhook",
    "delete /v1/webhooks/{webhook_id}": "",
    "post /v1/webhooks/{webhook_id}/test": "Delivery",
    "get /v1/webhooks/{webhook_id}/deliveries": "DeliveryPage",
    "get /v1/workspaces/current/models/model-types/{model_type}": "ContractModels",
    "get /v1/models": "ModelList",
    "post /v1/models": "Model",
    "get /v1/models/{model_id}": "Model",
    "patch /v1/models/{model_id}": "Model",
    "delete /v1/models/{model_id}": "",
    "post /v1/models/{model_id}/test": "ModelTrial",
    "get /v1/status": "Status",
    "post /v1/doctor": "Doctor",
    "get /health/live": "Health",
    "get /health/ready": "Health",
    "get /metrics": "text/plain; version=0.0.4; charset=utf-8",
}
"""Method and path (`D`, `C`: of a dataset, a document) -> a type, a media type, or nothing."""
