"""What a chat template reads, found in its syntax: variables by name, and whether it takes messages in parts."""

from jinja2 import meta, nodes

# Filters that make a list of parts from a list of parts.
_LISTS = frozenset({"list", "reject", "rejectattr", "reverse", "select", "selectattr"})


def variables(tree: nodes.Template) -> set[str]:
    """Names that the template takes from whoever renders it."""
    return meta.find_undeclared_variables(tree)


def reads_parts(tree: nodes.Template) -> bool:
    """Whether the template loops over the content of a message, so that it wants parts instead of one text.

    The content is followed through assignments and the arguments of macros, by name.
    """
    names = {"content"}
    while more := _names_for_content(tree, names) - names:
        names |= more
    if any(_is_content(loop.iter, names) for loop in tree.find_all(nodes.For)):
        return True
    return any(f.name == "map" and f.kwargs and _is_content(f.node, names) for f in tree.find_all(nodes.Filter))


def _names_for_content(tree: nodes.Template, names: set[str]) -> set[str]:
    """Variables and parameters that the template gives the content of a message, or one of `names`, to."""
    found = {
        assign.target.name
        for assign in tree.find_all(nodes.Assign)
        if isinstance(assign.target, nodes.Name) and _is_content(assign.node, names)
    }
    parameters = {macro.name: macro.args for macro in tree.find_all(nodes.Macro)}
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Name):
            called = parameters.get(call.node.name, [])
            found |= {to.name for to, given in zip(called, call.args, strict=False) if _is_content(given, names)}
    return found


def _is_content(node: nodes.Node | None, names: set[str]) -> bool:
    match node:
        case nodes.Name():
            return node.name in names
        case nodes.Getattr():
            return node.attr == "content"
        case nodes.Getitem(arg=nodes.Const(value="content")):
            return True
        case nodes.Getitem(arg=nodes.Slice()):
            return _is_content(node.node, names)
        case nodes.Call(node=nodes.Getattr(attr="get"), args=[nodes.Const(value="content"), *_]):
            return True
        case nodes.Filter():
            return node.name in _LISTS and _is_content(node.node, names)
        case nodes.CondExpr():
            return _is_content(node.expr1, names) or _is_content(node.expr2, names)
        case nodes.Or():
            return _is_content(node.left, names) or _is_content(node.right, names)
    return False
