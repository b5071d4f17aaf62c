"""Knowledge retrieval: one question to several datasets, as a workflow's node asks it."""
