"""`dia update`: a model folder learns from readers' marks, and forgets them again.

`folder.py` changes model folders, `marks.py` reads files of marks.
"""

from .folder import Updated, undo_folder, update_folder

__all__ = ["Updated", "undo_folder", "update_folder"]
