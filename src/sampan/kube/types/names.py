"""Which names, labels and keys Kubernetes takes, and what it says about the others.

Each rule is a function from a value to its complaints, in upstream's words; an empty list means the value is fine. Rules are
called on every write, so each first asks one compiled pattern and words its complaint only when that says no.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable

NameRule = Callable[[str], list[str]]

ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
"""Letters of generated name suffixes: no vowels, nothing easily confused."""
GENERATED_BASE_LIMIT = 58
IMMUTABLE = "field is immutable"

_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_LABEL_1035 = "[a-z]([-a-z0-9]*[a-z0-9])?"
_QUALIFIED = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_LABEL_VALUE = f"({_QUALIFIED})?"
_CONFIG_KEY = "[-._a-zA-Z0-9]+"
_HEADER = "[-A-Za-z0-9]+"

_label_re = re.compile(_LABEL)
_subdomain_re = re.compile(_SUBDOMAIN)
_label_1035_re = re.compile(_LABEL_1035)
_qualified_re = re.compile(_QUALIFIED)
_label_value_re = re.compile(_LABEL_VALUE)
_config_key_re = re.compile(_CONFIG_KEY)
_environment_re = re.compile(r"[ -<>-~]+")
_header_re = re.compile(_HEADER)
_port_re = re.compile(r"[-a-z0-9]+")


def _pattern(text: str, pattern: str, *examples: str) -> str:
    given = " or ".join(f"'{example}', " for example in examples)
    return f"{text} ({'e.g. ' + given if given else ''}regex used for validation is '{pattern}')"


def _too_long(limit: int) -> str:
    return f"must be no more than {limit} characters"


def dns_label(value: str) -> list[str]:
    """RFC 1123 label, at most 63 characters."""
    problems = [] if len(value) <= 63 else [_too_long(63)]
    if not _label_re.fullmatch(value):
        text = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character"
        problems.append(_pattern(text, _LABEL, "my-name", "123-abc"))
    return problems


def dns_subdomain(value: str) -> list[str]:
    """RFC 1123 subdomain, at most 253 characters: the rule of most object names."""
    problems = [] if len(value) <= 253 else [_too_long(253)]
    if not _subdomain_re.fullmatch(value):
        text = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character"
        problems.append(_pattern(text, _SUBDOMAIN.replace("\\.", "\\."), "example.com"))
    return problems


def dns_label_1035(value: str) -> list[str]:
    """RFC 1035 label (begins with a letter): the rule of Service names."""
    problems = [] if len(value) <= 63 else [_too_long(63)]
    if not _label_1035_re.fullmatch(value):
        text = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character"
        problems.append(_pattern(text, _LABEL_1035, "my-name", "abc-123"))
    return problems


def wildcard_subdomain(value: str) -> list[str]:
    """``*.`` and a subdomain, as Ingress hosts may be."""
    if value.startswith("*.") and not dns_subdomain(value[2:]) and len(value) <= 253:
        return []
    text = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character"
    return [_pattern(text, rf"\*\.{_SUBDOMAIN}", "*.example.com")]


def fully_qualified_name(value: str) -> list[str]:
    """A subdomain of at least three labels: the rule of webhook names."""
    if not value:
        return ["must not be empty"]
    if problems := dns_subdomain(value.removesuffix(".")):
        return problems
    if value.count(".") < 2:
        return ["should be a domain with at least three segments separated by dots"]
    return []


def path_segment(value: str) -> list[str]:
    """Anything that can stand in a URL path: the rule of RBAC names."""
    if value in (".", ".."):
        return [f"may not be '{value}'"]
    return [f"may not contain '{character}'" for character in "/%" if character in value]


def qualified_name(value: str) -> list[str]:
    """``[prefix/]name``: the rule of label, annotation and finalizer keys."""
    prefix, slash, name = value.rpartition("/")
    problems: list[str] = []
    if "/" in prefix:
        text = "a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character"
        return [
            _pattern(text, _QUALIFIED, "MyName", "my.name", "123-abc")
            + " with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
        ]
    if slash:
        if not prefix:
            problems.append("prefix part must be non-empty")
        else:
            problems += [f"prefix part {problem}" for problem in dns_subdomain(prefix)]
    if not name:
        problems.append("name part must be non-empty")
    elif len(name) > 63:
        problems.append(f"name part {_too_long(63)}")
    if not _qualified_re.fullmatch(name):
        text = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character"
        problems.append(_pattern(text, _QUALIFIED, "MyName", "my.name", "123-abc"))
    return problems


def label_value(value: str) -> list[str]:
    """At most 63 characters, may be empty."""
    problems = [] if len(value) <= 63 else [_too_long(63)]
    if not _label_value_re.fullmatch(value):
        text = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character"
        problems.append(_pattern(text, _LABEL_VALUE, "MyValue", "my_value", "12345"))
    return problems


def config_key(value: str) -> list[str]:
    """A key of a ConfigMap or Secret."""
    if len(value) > 253:
        return [_too_long(253)]
    if not _config_key_re.fullmatch(value):
        text = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'"
        return [_pattern(text, _CONFIG_KEY, "key.name", "KEY_NAME", "key-name")]
    if value == ".":
        return ["must not be '.'"]
    if value == "..":
        return ["must not be '..'"]
    return ["must not start with '..'"] if value.startswith("..") else []


def environment_name(value: str) -> list[str]:
    """The name of an environment variable."""
    if _environment_re.fullmatch(value):
        return []
    return ["a valid environment variable name must consist only of printable ASCII characters other than '='"]


def http_header(value: str) -> list[str]:
    """The name of an HTTP header."""
    if _header_re.fullmatch(value):
        return []
    text = "a valid HTTP header must consist of alphanumeric characters or '-'"
    return [_pattern(text, _HEADER, "X-Header-Name")]


def port_number(value: int) -> list[str]:
    """1 to 65535."""
    return [] if 1 <= value <= 65535 else ["must be between 1 and 65535, inclusive"]


def port_name(value: str) -> list[str]:
    """An IANA service name: how a container port or target port is named."""
    problems: list[str] = []
    if len(value) > 15:
        problems.append("must be no more than 15 characters")
    if not _port_re.fullmatch(value):
        problems.append("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)")
    if not any("a" <= character <= "z" for character in value):
        problems.append("must contain at least one letter (a-z)")
    if "--" in value:
        problems.append("must not contain consecutive hyphens")
    if value[:1] == "-" or value[-1:] == "-":
        problems.append("must not begin or end with a hyphen")
    return problems


def generate_name(base: str) -> str:
    """A name from ``generateName``: the base, cut to 58 characters, and five random letters."""
    return base[:GENERATED_BASE_LIMIT] + "".join(secrets.choice(ALPHABET) for _ in range(5))
