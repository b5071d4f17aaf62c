"""Metadata: a dataset's typed fields, the values that its documents hold, and the index's copy.

The values stand in SQL (`documents.doc_metadata`, by field id). The index has a copy with each
point, its `Facts`, so that queries can be filtered there; `labels` keeps the copy true.
"""
