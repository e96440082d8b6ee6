"""Takes from the pages what the theme and Jupyter Book load and this book does not use."""

from pathlib import Path


def without_thebe(app, pagename, templatename, context, doctree):
    """No code runs in the page; asked for twice, as happens here, its script is an error."""
    scripts = context.get("script_files", [])
    context["script_files"] = [s for s in scripts if "thebe" not in f"{s.filename} {s.attributes}"]


def without_second_icons(app, exception):
    """The icons of the theme are a font already; as a script they are 1.5 MB on every page."""
    if exception is None and app.builder.format == "html":
        Path(app.outdir, "_static", "scripts", "fontawesome.js").write_text("")


def setup(app):
    app.connect("html-page-context", without_thebe, priority=900)
    app.connect("build-finished", without_second_icons)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
