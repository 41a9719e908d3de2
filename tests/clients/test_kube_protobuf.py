"""What controller-runtime sends: protobuf bodies, written here from the field numbers alone, answered in JSON."""

from __future__ import annotations

import json
import ssl
import urllib.request
from urllib.error import HTTPError

import pytest

from sampan.kube.client.config import from_kubeconfig
from sampan.testing import Platform


def field(number: int, content: bytes | str) -> bytes:
    """A length-delimited field."""
    data = content.encode() if isinstance(content, str) else content
    assert number < 16 and len(data) < 16384
    size = bytes([len(data)]) if len(data) < 128 else bytes([len(data) & 127 | 128, len(data) >> 7])
    return bytes([number << 3 | 2]) + size + data


def envelope(version: str, kind: str, message: bytes) -> bytes:
    """A message in the envelope of upstream's ``runtime.Unknown``."""
    return b"k8s\0" + field(1, field(1, version) + field(2, kind)) + field(2, message)


def post(platform: Platform, path: str, body: bytes) -> tuple[int, dict[str, object]]:
    config = from_kubeconfig(platform.kubeconfig)
    assert isinstance(config.tls, ssl.SSLContext)
    kind = "application/vnd.kubernetes.protobuf"
    headers = {"Content-Type": kind, "Accept": f"{kind},application/json"}
    request = urllib.request.Request(config.server + path, body, headers, method="POST")
    try:
        with urllib.request.urlopen(request, context=config.tls, timeout=20) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)


def test_a_deployment_created_in_protobuf_is_there_with_its_defaults(shared_platform: Platform) -> None:
    labels = field(1, field(1, "app") + field(2, "pb"))
    container = field(1, "c") + field(2, "nginx")
    template = field(1, field(11, field(1, "app") + field(2, "pb"))) + field(2, field(2, container))
    spec = b"\x08\x00" + field(2, labels) + field(3, template)
    body = envelope("apps/v1", "Deployment", field(1, field(1, "pb") + field(3, "default")) + field(2, spec))
    status, made = post(shared_platform, "/apis/apps/v1/namespaces/default/deployments", body)
    assert status == 201, made
    found = made["spec"]
    assert isinstance(found, dict)
    assert found["replicas"] == 0 and found["strategy"]["rollingUpdate"]["maxSurge"] == "25%"
    assert found["template"]["spec"]["containers"][0]["imagePullPolicy"] == "Always"
    status, told = post(shared_platform, "/apis/apps/v1/namespaces/default/deployments", body)
    assert (status, told["reason"]) == (409, "AlreadyExists")


@pytest.mark.parametrize("cut", [5, 30, 60])
def test_a_protobuf_body_that_breaks_off_is_refused(shared_platform: Platform, cut: int) -> None:
    body = envelope("v1", "ConfigMap", field(1, field(1, "cut") + field(3, "default")) + field(2, field(1, "a" * 40)))
    status, told = post(shared_platform, "/api/v1/namespaces/default/configmaps", body[:cut])
    assert (status, told["kind"], told["reason"]) == (400, "Status", "BadRequest")
