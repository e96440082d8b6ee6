"""Before the notebooks are checked: their demonstration is trained afresh, never read back."""

import shutil
from pathlib import Path


def pytest_sessionstart(session):
    shutil.rmtree(Path(__file__).parent / "notebooks" / "runs" / "demo", ignore_errors=True)
