"""Sets of fields, kept in the form in which ``managedFields`` stores them (FieldsV1).

A set is a tree: each key is one step (``f:<name>`` a field, ``k:{...}`` a list item by its keys, ``v:<json>`` an item of a set,
``i:<n>`` an index), each value what lies below. A node is itself in the set when it is empty or has the key ``"."``. The root
is never a member; the empty dict is the empty set. All operations return new trees and leave their arguments alone, but
results may share branches with them: treat every set as frozen.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

FieldSet: TypeAlias = dict[str, Any]
"""A set of fields; see the module."""


def member(node: Mapping[str, Any]) -> bool:
    """Whether a node (not the root) is itself in the set."""
    return not node or "." in node


def _node(children: FieldSet, is_member: bool) -> FieldSet | None:
    """A node from its parts; None when nothing is left."""
    if not children:
        return {} if is_member else None
    if is_member:
        return {".": {}, **children}
    return children


def union(a: FieldSet, b: FieldSet) -> FieldSet:
    """Fields in either set."""
    if not a or not b:
        return a or b
    out = dict(a)
    for step, node in b.items():
        if step == ".":
            out["."] = {}
        elif step not in out:
            out[step] = node
        else:
            out[step] = _union_nodes(out[step], node)
    return out


def _union_nodes(a: FieldSet, b: FieldSet) -> FieldSet:
    if not a:
        return b if member(b) else {".": {}, **b}
    if not b:
        return a if "." in a else {".": {}, **a}
    return union(a, b)


def difference(a: FieldSet, b: FieldSet) -> FieldSet:
    """Fields of ``a`` that are not in ``b``."""
    if not b:
        return a
    out: FieldSet = {}
    for step, node in a.items():
        other = b.get(step)
        if step == ".":
            continue
        if other is None:
            out[step] = node
            continue
        left = _node(difference(_children(node), _children(other)), member(node) and not member(other))
        if left is not None:
            out[step] = left
    return out


def intersection(a: FieldSet, b: FieldSet) -> FieldSet:
    """Fields in both sets."""
    out: FieldSet = {}
    for step, node in a.items():
        other = b.get(step)
        if other is None or step == ".":
            continue
        both = _node(intersection(_children(node), _children(other)), member(node) and member(other))
        if both is not None:
            out[step] = both
    return out


def _children(node: FieldSet) -> FieldSet:
    if "." in node:
        return {step: below for step, below in node.items() if step != "."}
    return node


def paths(fields: FieldSet, prefix: str = "") -> Iterator[str]:
    """The members as upstream prints them: ``.spec.containers[name="a"].image``."""
    for step, node in fields.items():
        if step == ".":
            continue
        path = prefix + step_text(step)
        if member(node):
            yield path
        yield from paths(node, path)


def step_text(step: str) -> str:
    """One step as upstream prints it."""
    kind, rest = step[:2], step[2:]
    if kind == "f:":
        return "." + rest
    if kind == "k:":
        keys = json.loads(rest)
        return "[" + ",".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in keys.items()) + "]"
    if kind == "v:":
        return f"[={rest}]"
    return f"[{rest}]"
