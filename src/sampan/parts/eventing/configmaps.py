"""The ConfigMaps in ``knative-eventing`` that shape Eventing, made with upstream's defaults at first start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from sampan.kube.objects import Key, Object
from sampan.parts.eventing.resources import DEFAULT_CLASS, SYSTEM_NAMESPACE

BROKER_DEFAULTS = "config-br-defaults"
CHANNEL_DEFAULTS = "default-ch-webhook"
FEATURES = "config-features"

_BROKER: Mapping[str, Any] = {
    "clusterDefault": {
        "brokerClass": DEFAULT_CLASS,
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "name": "config-br-default-channel",
        "namespace": SYSTEM_NAMESPACE,
        "delivery": {"retry": 10, "backoffPolicy": "exponential", "backoffDelay": "PT0.2S"},
    }
}
_CHANNEL: Mapping[str, Any] = {"clusterDefault": {"apiVersion": "messaging.knative.dev/v1", "kind": "InMemoryChannel"}}


def _text(values: Mapping[str, Any], indent: str = "") -> str:
    """Mappings of plain words as YAML, without loading the library for it at every start."""
    return "".join(
        f"{indent}{key}:\n{_text(value, indent + '  ')}" if isinstance(value, Mapping) else f"{indent}{key}: {value}\n"
        for key, value in values.items()
    )


DEFAULTS: Mapping[str, Mapping[str, str]] = {
    BROKER_DEFAULTS: {"default-br-config": _text(_BROKER)},
    "config-br-default-channel": {
        "channel-template-spec": "apiVersion: messaging.knative.dev/v1\nkind: InMemoryChannel\n"
    },
    CHANNEL_DEFAULTS: {"default-ch-config": _text(_CHANNEL)},
    FEATURES: {
        "delivery-timeout": "enabled",
        "delivery-retryafter": "disabled",
        "eventtype-auto-create": "disabled",
        "kreference-group": "disabled",
        "kreference-mapping": "disabled",
        "transport-encryption": "disabled",
        "authentication-oidc": "disabled",
        "default-authorization-mode": "allow-same-namespace",
    },
    "config-ping-defaults": {"data-max-size": "-1"},
    "config-sugar": {},
}
"""The ConfigMaps made at first start."""


class Config:
    """The ConfigMaps as they are now."""

    def __init__(self, lookup: Callable[[Key], Object | None]) -> None:
        self._lookup = lookup

    def broker_defaults(self, namespace: str) -> Mapping[str, Any]:
        """What a Broker of a namespace gets: brokerClass, the config's reference, delivery."""
        return self._of_namespace(BROKER_DEFAULTS, "default-br-config", _BROKER, namespace)

    def channel_template(self, namespace: str) -> dict[str, Any]:
        """The channelTemplate of a Channel without one."""
        found = self._of_namespace(CHANNEL_DEFAULTS, "default-ch-config", _CHANNEL, namespace)
        return {name: found[name] for name in ("apiVersion", "kind", "spec") if name in found}

    def feature(self, name: str) -> bool:
        """Whether a feature of ``config-features`` is enabled."""
        return self._data(FEATURES).get(name, "disabled").strip().lower() == "enabled"

    def ping_limit(self) -> int:
        """Bytes of a PingSource's data at most; -1: any number."""
        try:
            return int(self._data("config-ping-defaults").get("data-max-size", "-1"))
        except ValueError:
            return -1

    def _data(self, name: str) -> Mapping[str, str]:
        found = self._lookup(Key(SYSTEM_NAMESPACE, name))
        return (found or {}).get("data") or {}

    def _of_namespace(self, name: str, key: str, default: Mapping[str, Any], namespace: str) -> Mapping[str, Any]:
        text = self._data(name).get(key)
        try:
            given = msgspec.yaml.decode(text, type=dict[str, Any]) if text else default
        except msgspec.MsgspecError:  # a typing error in a ConfigMap must not stop every write
            given = default
        chosen: Mapping[str, Any] = (given.get("namespaceDefaults") or {}).get(namespace) or {}
        return chosen or given.get("clusterDefault") or default["clusterDefault"]
