"""What a run leaves behind: a JSON document with all that repeats it, a table and two pictures."""

from .document import document
from .folder import write_report
from .pictures import accuracy_picture, firing_picture
from .tables import accuracy_table

__all__ = ["accuracy_picture", "accuracy_table", "document", "firing_picture", "write_report"]
