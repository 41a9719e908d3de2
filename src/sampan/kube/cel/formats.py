"""Named formats: ``format.dns1123Label().validate(self.name)`` gives what is wrong, or nothing."""

from __future__ import annotations

import base64
import binascii
import re
import uuid as uuids
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Any

from sampan.kube.cel.errors import CelError
from sampan.kube.cel.functions import Library
from sampan.kube.cel.network import is_url
from sampan.kube.cel.values import NONE, Optional, Timestamp

library = Library()

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_LABEL_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_QUALIFIED = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")

LABEL_1123 = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an "
    "alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
LABEL_1035 = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end "
    "with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is "
    "'[a-z]([-a-z0-9]*[a-z0-9])?')"
)
SUBDOMAIN_1123 = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end "
    "with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
QUALIFIED_NAME = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    "character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
LABEL_VALUE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end "
    "with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)


def _matching(pattern: re.Pattern[str], limit: int, message: str) -> Callable[[str], list[str]]:
    def problems(text: str) -> list[str]:
        found = [] if len(text) <= limit else [f"must be no more than {limit} characters"]
        return found if pattern.fullmatch(text) else [*found, message]

    return problems


label_problems = _matching(_LABEL, 63, LABEL_1123)
label_1035_problems = _matching(_LABEL_1035, 63, LABEL_1035)
subdomain_problems = _matching(_SUBDOMAIN, 253, SUBDOMAIN_1123)
_name_part = _matching(_QUALIFIED, 63, QUALIFIED_NAME)


def qualified_name_problems(text: str) -> list[str]:
    """Problems of a label key, ``[prefix/]name``."""
    prefix, slash, name = text.rpartition("/")
    found: list[str] = []
    if slash:
        found = (
            ["prefix part must be non-empty"]
            if not prefix
            else [f"prefix part {why}" for why in subdomain_problems(prefix)]
        )
    return found + (_name_part(name) if name else ["name part must be non-empty", QUALIFIED_NAME])


def label_value_problems(text: str) -> list[str]:
    """Problems of a label value."""
    found = [] if len(text) <= 63 else ["must be no more than 63 characters"]
    return found if not text or _QUALIFIED.fullmatch(text) else [*found, LABEL_VALUE]


def _prefix(check: Callable[[str], list[str]]) -> Callable[[str], list[str]]:
    """Names that may end in a dash, as ``generateName`` prefixes do."""
    return lambda text: check(text[:-1] + "a" if text.endswith("-") and len(text) > 1 else text)


def _uri(text: str) -> list[str]:
    return [] if is_url(text) else [f'parse "{text}": invalid URI for request']


def _uuid(text: str) -> list[str]:
    try:
        uuids.UUID(text)
    except ValueError:
        return ["does not match the UUID format"]
    return []


def _byte(text: str) -> list[str]:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return ["invalid base64"]
    return []


def _date(text: str) -> list[str]:
    try:
        if len(text) != 10:
            raise ValueError
        date.fromisoformat(text)
    except ValueError:
        return ["invalid date"]
    return []


def _datetime(text: str) -> list[str]:
    try:
        Timestamp.parse(text)
    except CelError:
        return ["invalid datetime"]
    return []


FORMATS: dict[str, Callable[[str], list[str]]] = {
    "dns1123Label": label_problems,
    "dns1123Subdomain": subdomain_problems,
    "dns1035Label": label_1035_problems,
    "qualifiedName": qualified_name_problems,
    "dns1123LabelPrefix": _prefix(label_problems),
    "dns1123SubdomainPrefix": _prefix(subdomain_problems),
    "dns1035LabelPrefix": _prefix(label_1035_problems),
    "labelValue": label_value_problems,
    "uri": _uri,
    "uuid": _uuid,
    "byte": _byte,
    "date": _date,
    "datetime": _datetime,
}


@dataclass(frozen=True, slots=True)
class Format:
    """A named format as a value."""

    name: str
    cel_type = "kubernetes.NamedFormat"


@library("format.named(string) -> optional_type(kubernetes.NamedFormat)")
def named(name: str) -> Optional:
    return Optional(Format(name)) if name in FORMATS else NONE


@library("<kubernetes.NamedFormat>.validate(string) -> optional_type(list(string))")
def validate(form: Format, text: str) -> Optional:
    problems = FORMATS[form.name](text)
    return Optional(problems) if problems else NONE


def _constant(name: str) -> Callable[[], Any]:
    form = Format(name)
    return lambda: form


for _known in FORMATS:
    library(f"format.{_known}() -> kubernetes.NamedFormat")(_constant(_known))
