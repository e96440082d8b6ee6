"""The directive `execution-times`: a table of the minutes that each notebook took, with its default
parameters, when it was last executed. Read from executed.csv when the book is built."""

import csv
import io
from pathlib import Path

from docutils.parsers.rst.directives.tables import CSVTable

EXECUTED = Path(__file__).parent / "executed.csv"


def minutes_of(executed: Path) -> list[list[str]]:
    """Header and a row for each notebook: a link to it, its minutes, where it ran and when."""
    with open(executed, newline="") as file:
        rows = [
            [
                f"[](../notebooks/{row['notebook']})",
                f"{float(row['seconds']) / 60:.1f}",
                row["device"],
                row["date (UTC)"],
            ]
            for row in csv.DictReader(file)
        ]
    return [["notebook", "minutes", "device", "date (UTC)"], *rows]


class ExecutionTimes(CSVTable):
    has_content = False

    def run(self):
        self.options |= {"header-rows": 1, "class": ["executed"]}
        return super().run()

    def get_csv_data(self):
        text = io.StringIO()
        csv.writer(text).writerows(minutes_of(EXECUTED))
        self.state.document.settings.record_dependencies.add(str(EXECUTED))
        return text.getvalue().splitlines(), str(EXECUTED)


def setup(app):
    app.add_directive("execution-times", ExecutionTimes)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
