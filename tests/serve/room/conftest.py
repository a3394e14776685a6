import pytest
from reading_room import make_page


@pytest.fixture
def page(inferencer, served_run, tmp_path):
    """A room with a small model, and a file of marks of its own."""
    made = make_page(inferencer, served_run.run, tmp_path / "marks.sqlite")
    yield made
    made.room.sessions.close()
    made.room.current.close()
