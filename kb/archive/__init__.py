"""One dataset as a file that another installation takes in: docs/archive.md has the format."""

from kb.archive.exporting import export_dataset
from kb.archive.importing import Imported, import_dataset

__all__ = ["Imported", "export_dataset", "import_dataset"]
