"""Execute notebooks in place through papermill: python book/execute.py notebooks/train.ipynb ...

What differs from run to run without meaning (times, progress bars) is not stored, and a notebook
that fails is left as it was.
"""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
import papermill


def execute(notebook: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        executed = Path(folder) / notebook.name
        papermill.execute_notebook(notebook, executed, cwd=notebook.parent, progress_bar=False)
        content = nbformat.read(executed, as_version=4)
    content.metadata.pop("papermill", None)
    for cell in content.cells:
        for volatile in ("papermill", "execution"):
            cell.metadata.pop(volatile, None)
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    beside = notebook.with_name(f".{notebook.name}.tmp")
    nbformat.write(content, beside)
    os.replace(beside, notebook)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        execute(Path(name))
