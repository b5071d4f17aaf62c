"""What all models behind HTTP share: one server each, its moods, and what its answers mean."""

from __future__ import annotations

from kb.adapters.model_server.contact import Contact
from kb.adapters.model_server.endpoint import Endpoint, Patience, Request
from kb.adapters.model_server.faults import BadAnswer, Fault, Refused

__all__ = ["BadAnswer", "Contact", "Endpoint", "Fault", "Patience", "Refused", "Request"]
