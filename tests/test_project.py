"""Facts that stand in one place only, and files that are where users expect them."""

import ast
import json
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import torch
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import patlib
from patlib import RunConfig, RunRecord
from patlib.config import SCHEMA_DEFAULTS
from patlib.records import provenance
from patlib.study.grids import run_name

ROOT = Path(__file__).parents[1]


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {
    name: [Requirement(r) for r in requirements]
    for name, requirements in PROJECT["optional-dependencies"].items()
}
CORE = [Requirement(r) for r in PROJECT["dependencies"]]


def constraints():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [line.split("==") for line in lines if not line.startswith("#")]
    assert all(len(pin) == 2 and re.fullmatch(r"[\w.+]+", pin[1]) for pin in pinned), pinned
    return {canonicalize_name(name): version for name, version in pinned}


def test_constraints_name_an_allowed_version_of_every_dependency():
    pinned = constraints()
    for requirement in [*CORE, *(r for extra in EXTRAS.values() for r in extra)]:
        if requirement.name != PROJECT["name"]:
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])


def test_versions_that_a_record_names_are_those_of_the_constraints():
    versions = provenance(torch.device("cpu"))["versions"]
    assert versions.pop("patlib") == patlib.__version__
    pinned = constraints()
    assert versions == {name: pinned[canonicalize_name(name)] for name in versions}


def test_environment_installs_all_extras_with_the_constraints():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert [re.split("[=<>]", package)[0] for package in conda] == ["python", "pip"]
    assert pip == {"pip": ["--constraint constraints.txt", "--editable .[all]"]}
    (everything,) = EXTRAS["all"]
    assert everything.name == PROJECT["name"]
    assert everything.extras == EXTRAS.keys() - {"all"}


def imported(folder):
    """What the Python under a folder imports from outside: module -> its distributions."""
    modules = set()
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules.add(node.module.partition(".")[0])
    distributions = packages_distributions()
    own = {"patlib", *(path.stem for path in (ROOT / folder).iterdir())}
    return {
        module: {canonicalize_name(name) for name in distributions[module]}
        for module in modules - sys.stdlib_module_names - own
    }


def test_imports_are_declared_and_what_training_declares_is_imported():
    train = {canonicalize_name(r.name) for r in [*CORE, *EXTRAS["train"]]}
    # IPython comes with Jupyter, MyST-NB and docutils with Jupyter Book; only the book needs them.
    book = (
        train
        | {canonicalize_name(r.name) for r in EXTRAS["book"]}
        | {"ipython", "nbformat", "myst-nb", "docutils"}
    )
    # What one command or function needs, and asks for if it is missing.
    optional = {canonicalize_name(r.name) for r in EXTRAS["export"]} | {"ipython", "papermill"}
    used = set()
    for folder in ("patlib", "book", "study", "benchmarks"):
        declared = (train | optional) if folder == "patlib" else book
        for module, names in imported(folder).items():
            assert names & declared, f"{folder}/ imports {module}, which no extra declares"
            used |= names
    assert train <= used, f"declared, but not imported: {train - used}"


def test_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    changelog = (ROOT / "CHANGELOG.md").read_text()
    newest = re.search(r"^## \[(\d[^]]*)\]", changelog, re.MULTILINE)[1]
    assert patlib.__version__ == citation["version"] == newest


def test_the_paper_is_cited_alike_everywhere_with_the_version_that_is_meant():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    (paper,) = citation["references"]
    authors = " and ".join(f"{a['family-names']}, {a['given-names']}" for a in paper["authors"])
    for name in ("book/references.bib", "book/index.md"):
        text = " ".join((ROOT / name).read_text().split())
        assert f"author = {{{authors}}}" in text, name
        assert "arXiv:2404.05393, the version with three authors" in text, name
    assert len(paper["authors"]) == 3 and "three authors" in citation["message"]
    archive = json.loads((ROOT / ".zenodo.json").read_text())
    assert (archive["title"], archive["license"]) == (citation["title"], citation["license"])
    assert [c["name"] for c in archive["creators"]] == [a["name"] for a in citation["authors"]]
    index = (ROOT / "book" / "index.md").read_text()
    assert f"version = {{{citation['version']}}}" in index


def test_every_chapter_exists_and_every_notebook_is_a_chapter():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    files = [toc["root"], *(c["file"] for part in toc["parts"] for c in part["chapters"])]
    for file in files:
        assert any((ROOT / f"{file}{suffix}").is_file() for suffix in (".md", ".ipynb")), file
    notebooks = {f"notebooks/{n.stem}" for n in (ROOT / "notebooks").glob("*.ipynb")}
    pages = {f"book/{page.stem}" for page in (ROOT / "book").glob("*.md")}
    assert notebooks | pages == set(files) and len(files) == len(set(files))


def test_publishing_replaces_the_placeholder_wherever_it_stands():
    steps = yaml.safe_load((ROOT / ".github/workflows/book.yml").read_text())["jobs"]["publish"]
    sed = next(s["run"] for s in steps["steps"] if "OWNER" in s.get("run", ""))
    replaced = {path for word in sed.split()[3:] for path in ROOT.glob(word)}
    folders = (ROOT, ROOT / "book", ROOT / "notebooks")
    pages = {p for f in folders for p in f.iterdir() if p.suffix in (".md", ".yml", ".ipynb")}
    assert {p for p in pages if "OWNER/patlib" in p.read_text()} <= replaced | {ROOT / "README.md"}


def test_python_of_the_readme_is_valid_and_its_files_exist():
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert blocks
    for block in blocks:
        compile(block, "README.md", "exec")
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", readme):
        assert (ROOT / path).is_file(), path


def test_stored_records_can_be_read_and_run_again():
    """Also where the device of a record is not at hand."""
    paths = sorted((ROOT / "study/records/runs").glob("*.json"))
    assert paths
    for path in paths:
        record, stored = RunRecord.load(path), json.loads(path.read_text())["config"]
        root = None if record.config["dataset"] == "synthetic" else "somewhere"
        config = RunConfig(**{**record.config, "data_root": root})
        assert config.settings() == record.config, path
        assert path.stem == run_name(record.config), path
        assert path.with_suffix(".npz").is_file(), path
        commit = record.provenance["commit"]
        assert commit and not commit.endswith("-dirty"), path
        assert record.result["curves"]["epoch"][-1] == config.epochs, path
        # What records hold has defaults in the schema, which are never changed.
        assert stored.keys() <= SCHEMA_DEFAULTS["settings"].keys() | PARAMETERS.keys(), path
        for part, kind in PARAMETERS.items():
            known = SCHEMA_DEFAULTS[part].get(stored[kind], {})
            assert stored[part].keys() <= known.keys(), (
                f"{path}: enter the parameters of {stored[kind]!r} in patlib/schema_1.json"
            )


PARAMETERS = {"data_params": "dataset", "loss_params": "loss", "model_params": "model"}
