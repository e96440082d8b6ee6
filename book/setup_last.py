"""Puts what a chapter needs before its first figure, set-up and parameters, to the end of its page.

The cells stay where they are in the notebook. On the page they are folded (tagged ``hide-cell``),
and a reader should meet the answer and its figure first.
"""

from docutils import nodes


def move(app, doctree):
    """Move the folded cells of the top of a page into its last section."""
    top = next(iter(doctree.findall(nodes.section)), None)
    if top is None or not isinstance(top.children[-1], nodes.section):
        return
    for node in list(top.children):
        if isinstance(node, nodes.Element) and "tag_hide-cell" in node.get("classes", []):
            top.remove(node)
            top.children[-1].append(node)


def setup(app):
    app.connect("doctree-read", move, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
