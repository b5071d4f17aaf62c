"""The domain: datasets, documents, segments, retrieval, and the REST API over them."""
