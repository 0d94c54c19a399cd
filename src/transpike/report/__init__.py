"""What a run leaves behind: a JSON document with all that repeats it, a table and three pictures."""

from .document import document
from .energy_picture import energy_picture
from .folder import write_report
from .pictures import accuracy_picture, firing_picture
from .tables import accuracy_table

__all__ = ["accuracy_picture", "accuracy_table", "document", "energy_picture", "firing_picture", "write_report"]
