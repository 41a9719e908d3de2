"""Is a schema structural? The rules that let the server prune, default and merge custom resources without guessing.

Every node says its type; what only restricts values (``allOf``, ``anyOf``, ``oneOf``, ``not``) adds no structure; references and
other constructs whose cost or meaning is open are refused. The texts are upstream's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sampan.kube.cel import CompileError
from sampan.kube.objects import copy
from sampan.kube.types.custom.rules import VALIDATIONS, compile_rule, known_reasons
from sampan.kube.types.problems import Problems
from sampan.kube.types.structural import EMBEDDED, PRESERVE, apply_defaults
from sampan.kube.types.structural_validation import validate

_TYPES = ("array", "boolean", "integer", "number", "object", "string")
_UNSUPPORTED = {
    "$ref": "$ref is not supported",
    "definitions": "definitions is not supported",
    "dependencies": "dependencies is not supported",
    "patternProperties": "patternProperties is not supported",
    "additionalItems": "additionalItems is not supported",
    "id": "id is not supported",
}
_STRUCTURE_ONLY = ("type", "description", "title", "default", "nullable", "example", "additionalProperties")
_INT_OR_STRING = "x-kubernetes-int-or-string"


_shipped: dict[str, Any] = {}
"""Root schemas that come with Sampan, by the name of their definition and version."""


def trust_schemas(definition: Mapping[str, Any]) -> None:
    """Let the schemas of a definition that comes with Sampan pass as they are: tests have checked them, and checking all of them
    again would be a tenth of the time to start."""
    for version in definition["spec"]["versions"]:
        schema = (version.get("schema") or {}).get("openAPIV3Schema")
        if schema:
            _shipped[f"{definition['metadata']['name']} {version['name']}"] = schema


def is_shipped(name: str, version: str, schema: Any) -> bool:
    """Whether this is, to the letter, the schema that comes with Sampan."""
    known = _shipped.get(f"{name} {version}")
    return known is not None and bool(known == schema)


def check_schema(schema: Any, path: str, problems: Problems) -> None:
    """Report everything that keeps a version's schema from being structural."""
    if not isinstance(schema, dict):
        problems.required(path, "schemas are required")
        return
    if not schema.get("type"):
        problems.required(f"{path}.type", "must not be empty at the root")
    elif schema["type"] != "object":
        problems.invalid(f"{path}.type", schema["type"], "must be object at the root")
    if schema.get("nullable"):
        problems.forbidden(f"{path}.nullable", "nullable cannot be true at the root")
    _node(schema, path, problems, "", root=True, correlatable=True)


def _node(
    schema: Mapping[str, Any], path: str, problems: Problems, where: str, *, root: bool = False, correlatable: bool
) -> None:
    for key, why in _UNSUPPORTED.items():
        if schema.get(key):
            problems.forbidden(f"{path}.{key}", why)
    kind = schema.get("type")
    either = bool(schema.get(_INT_OR_STRING))
    if either and kind:
        problems.forbidden(f"{path}.type", "must be empty if x-kubernetes-int-or-string is true")
    elif not kind and not root and not either and not schema.get(PRESERVE):
        problems.required(f"{path}.type", f"must not be empty for specified {where}")
    elif kind and kind not in _TYPES:
        problems.unsupported(f"{path}.type", kind, _TYPES)
    if schema.get("uniqueItems"):
        problems.forbidden(
            f"{path}.uniqueItems", "uniqueItems cannot be set to true since the runtime complexity becomes quadratic"
        )
    if schema.get(EMBEDDED):
        if kind != "object":
            problems.invalid(f"{path}.type", kind or "", "must be object if x-kubernetes-embedded-resource is true")
        if not schema.get(PRESERVE) and not schema.get("properties"):
            problems.required(
                f"{path}.properties",
                "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields",
            )
    _children(schema, path, problems, root, correlatable)
    _pattern(schema, path, problems)
    _lists(schema, path, problems)
    if schema.get("x-kubernetes-map-type") not in (None, "granular", "atomic"):
        problems.unsupported(f"{path}.x-kubernetes-map-type", schema["x-kubernetes-map-type"], ("atomic", "granular"))
    for junctor in ("allOf", "anyOf", "oneOf"):
        for index, part in enumerate(schema.get(junctor) or ()):
            _values_only(part, schema, f"{path}.{junctor}[{index}]", problems)
    if isinstance(schema.get("not"), dict):
        _values_only(schema["not"], schema, f"{path}.not", problems)
    _default(schema, path, problems)
    _rules(schema, path, problems, root, correlatable)


def _children(schema: Mapping[str, Any], path: str, problems: Problems, root: bool, correlatable: bool) -> None:
    properties = schema.get("properties") or {}
    extra = schema.get("additionalProperties")
    if extra is False:
        problems.forbidden(f"{path}.additionalProperties", "additionalProperties cannot be set to false")
    elif extra and properties:
        problems.forbidden(f"{path}.additionalProperties", "additionalProperties and properties are mutual exclusive")
    elif root and extra is not None:
        problems.forbidden(f"{path}.additionalProperties", "additionalProperties cannot be used at the root")
    for name, field in properties.items():
        here = f"{path}.properties[{name}]"
        if not isinstance(field, dict):
            problems.invalid(here, field, "must be a schema object")
        elif (root or schema.get(EMBEDDED)) and name == "metadata":
            _metadata(field, here, problems)
        elif (root or schema.get(EMBEDDED)) and name in ("apiVersion", "kind"):
            if field.get("type") != "string":
                problems.invalid(f"{here}.type", field.get("type") or "", "must be string")
        else:
            _node(field, here, problems, "object fields", correlatable=correlatable)
    if isinstance(extra, dict):
        granular = schema.get("x-kubernetes-map-type") != "atomic"
        _node(extra, f"{path}.additionalProperties", problems, "object fields", correlatable=correlatable and granular)
    items = schema.get("items")
    if isinstance(items, list):
        problems.forbidden(f"{path}.items", "items must be a schema object and not an array")
    elif isinstance(items, dict):
        by_keys = schema.get("x-kubernetes-list-type") == "map"
        _node(items, f"{path}.items", problems, "array items", correlatable=correlatable and by_keys)
    elif schema.get("type") == "array":
        problems.required(f"{path}.items", "must be specified")


def _metadata(schema: Mapping[str, Any], path: str, problems: Problems) -> None:
    if schema.get("type") not in (None, "object"):
        problems.invalid(f"{path}.type", schema["type"], "must be object")
    fields = schema.get("properties") or {}
    other = set(schema) - {"type", "description", "properties"}
    if set(fields) - {"name", "generateName"} or other:
        problems.forbidden(
            path, "must not specify anything other than name and generateName, but metadata is implicitly specified"
        )


def _pattern(schema: Mapping[str, Any], path: str, problems: Problems) -> None:
    pattern = schema.get("pattern")
    if pattern is None:
        return
    import re2

    options = re2.Options()
    options.log_errors = False
    try:
        re2.compile(pattern, options)
    except (re2.error, TypeError) as error:
        problems.invalid(f"{path}.pattern", pattern, f"must be a valid regular expression, but isn't: {error}")


def _lists(schema: Mapping[str, Any], path: str, problems: Problems) -> None:
    list_type = schema.get("x-kubernetes-list-type")
    keys = schema.get("x-kubernetes-list-map-keys") or []
    if list_type is None:
        if keys:
            problems.invalid(
                f"{path}.x-kubernetes-list-type", None, "must be map if x-kubernetes-list-map-keys is non-empty"
            )
        return
    if list_type not in ("atomic", "set", "map"):
        problems.unsupported(f"{path}.x-kubernetes-list-type", list_type, ("atomic", "set", "map"))
        return
    if schema.get("type") != "array":
        problems.invalid(
            f"{path}.type", schema.get("type") or "", "must be array if x-kubernetes-list-type is specified"
        )
        return
    items = schema.get("items") if isinstance(schema.get("items"), dict) else {}
    assert isinstance(items, dict)
    if list_type != "map":
        if keys:
            problems.forbidden(
                f"{path}.x-kubernetes-list-map-keys", "must be empty if x-kubernetes-list-type is not map"
            )
        if list_type == "set" and items.get("nullable"):
            problems.forbidden(f"{path}.items.nullable", "cannot be nullable when x-kubernetes-list-type is set")
        return
    if not keys:
        problems.required(f"{path}.x-kubernetes-list-map-keys", "must not be empty if x-kubernetes-list-type is map")
    if items.get("type") != "object":
        problems.invalid(
            f"{path}.items.type",
            items.get("type") or "",
            "must be object if parent array's x-kubernetes-list-type is map",
        )
    fields = items.get("properties") or {}
    for index, key in enumerate(keys):
        field = fields.get(key)
        if field is None:
            problems.invalid(
                f"{path}.x-kubernetes-list-map-keys[{index}]", key, "entries must all be names of item properties"
            )
        elif field.get("type") in ("object", "array"):
            why = "must be a scalar type if parent array's x-kubernetes-list-type is map"
            problems.invalid(f"{path}.items.properties[{key}].type", field["type"], why)
        elif "default" not in field and key not in (items.get("required") or ()):
            why = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property"
            problems.required(f"{path}.items.properties[{key}].default", why)
    if len(set(keys)) != len(keys):
        problems.invalid(f"{path}.x-kubernetes-list-map-keys", keys, "must not contain duplicate entries")


def _values_only(part: Any, structure: Mapping[str, Any], path: str, problems: Problems) -> None:
    """A branch of a logical junctor: it may restrict values, never add structure."""
    if not isinstance(part, dict):
        return
    either = bool(structure.get(_INT_OR_STRING))
    for key in _STRUCTURE_ONLY:
        if key in part and not (key == "type" and either):
            problems.forbidden(
                f"{path}.{key}",
                "must be empty to be structural"
                if key != "additionalProperties"
                else "must be undefined to be structural",
            )
    for key in part:
        if key.startswith("x-kubernetes-") and key != VALIDATIONS:
            problems.forbidden(f"{path}.{key}", "must be false to be structural")
    known = structure.get("properties") or {}
    for name, field in (part.get("properties") or {}).items():
        below = known.get(name)
        if (
            below is None
            and not structure.get("additionalProperties")
            and name not in ("metadata", "apiVersion", "kind")
        ):
            _missing_from_structure(path, name, problems)
        if isinstance(field, dict):
            _values_only(field, below or {}, f"{path}.properties[{name}]", problems)
    if isinstance(part.get("items"), dict):
        items = structure.get("items")
        if not isinstance(items, dict):
            problems.required(_unbranched(f"{path}.items"), "because it is defined in " + path + ".items")
        _values_only(part["items"], items if isinstance(items, dict) else {}, f"{path}.items", problems)
    for junctor in ("allOf", "anyOf", "oneOf"):
        for index, inner in enumerate(part.get(junctor) or ()):
            _values_only(inner, structure, f"{path}.{junctor}[{index}]", problems)
    if isinstance(part.get("not"), dict):
        _values_only(part["not"], structure, f"{path}.not", problems)


def _missing_from_structure(path: str, name: str, problems: Problems) -> None:
    problems.required(_unbranched(f"{path}.properties[{name}]"), f"because it is defined in {path}.properties[{name}]")


def _unbranched(path: str) -> str:
    """The path of the same node outside of the junctors."""
    steps = path.split(".")
    return ".".join(step for step in steps if step != "not" and not step.startswith(("allOf[", "anyOf[", "oneOf[")))


def _default(schema: Mapping[str, Any], path: str, problems: Problems) -> None:
    if "default" not in schema:
        return
    value = copy(schema["default"])
    apply_defaults(value, schema)
    for error in validate(value, schema, path=f"{path}.default"):
        problems.append(error)


def _rules(schema: Mapping[str, Any], path: str, problems: Problems, root: bool, correlatable: bool) -> None:
    for index, given in enumerate(schema.get(VALIDATIONS) or ()):
        here = f"{path}.{VALIDATIONS}[{index}]"
        text = (given.get("rule") or "").strip()
        if not text:
            problems.required(f"{here}.rule", "rule is not specified")
            continue
        if "message" in given and not given["message"].strip():
            problems.invalid(f"{here}.message", given["message"], "message must be non-empty if specified")
        elif "\n" in (given.get("message") or ""):
            problems.invalid(f"{here}.message", given["message"], "message must not contain line breaks")
        elif "\n" in text and not given.get("message"):
            problems.required(f"{here}.message", "message must be specified if rule contains line breaks")
        if given.get("reason") not in (None, *known_reasons()):
            problems.unsupported(f"{here}.reason", given["reason"], known_reasons())
        try:
            rule = compile_rule(given, schema, root)
        except CompileError as error:
            problems.invalid(f"{here}.rule", text, f"compilation failed: {error}")
            continue
        except ValueError as error:
            member = "messageExpression" if "messageExpression" in str(error) else "rule"
            problems.invalid(f"{here}.{member}", given.get(member) or "", str(error))
            continue
        if rule.transition and not correlatable:
            problems.invalid(
                f"{here}.rule",
                text,
                f"oldSelf cannot be used on the uncorrelatable portion of the schema within {path}",
            )
        if rule.optional_old and "oldSelf" not in rule.program.variables:
            problems.invalid(f"{here}.optionalOldSelf", True, "may not be set if oldSelf is not used in rule")
