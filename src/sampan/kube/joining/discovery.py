"""Finding out whom one joins: the cluster's public description, and why to believe it.

``cluster-info`` in ``kube-public`` may be read by anybody. It holds a kubeconfig with the API server's address and authority,
and a signature for each token that may sign. So the first request trusts nobody and its answer counts only if the token at
hand signed it, or the authority's key has a hash one was given (``sha256:<hex>``, over the public key as kubeadm counts it).
The description is then fetched again over a connection that the authority vouches for.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import ssl
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sampan.kernel.clock import Clock
from sampan.kube.client.http import HttpClient
from sampan.kube.joining.tokens import JoinError, Token, is_signed
from sampan.kube.objects import Object
from sampan.kube.resources import CONFIG_MAPS
from sampan.kube.status import ApiError

NAMESPACE = "kube-public"
NAME = "cluster-info"
KUBECONFIG = "kubeconfig"
SIGNATURE = "jws-kubeconfig-"
"""A token's signature stands under this and its id."""


class Cluster(NamedTuple):
    """What a joining node needs to know of the cluster."""

    server: str
    """Base URL of the API server, as it names itself."""
    authority: str
    """PEM certificate that vouches for it, its nodes and its users."""


def described(server: str, authority: str) -> str:
    """The text that is signed: a kubeconfig without a user."""
    encoded = base64.b64encode(authority.encode()).decode()
    return (
        "apiVersion: v1\nclusters:\n- cluster:\n"
        f"    certificate-authority-data: {encoded}\n    server: {server}\n"
        '  name: ""\ncontexts: null\ncurrent-context: ""\nkind: Config\npreferences: {}\nusers: null\n'
    )


def read(text: str) -> Cluster:
    """Read such a text.

    Raises:
        JoinError: it is not a kubeconfig with one cluster and its authority.
    """
    import yaml

    try:
        cluster = yaml.safe_load(text)["clusters"][0]["cluster"]
        authority = base64.b64decode(cluster["certificate-authority-data"], validate=True).decode()
        return Cluster(str(cluster["server"]), authority)
    except (yaml.YAMLError, KeyError, TypeError, IndexError, ValueError, binascii.Error) as error:
        raise JoinError(f"{NAMESPACE}/{NAME} does not describe a cluster: {error}") from None


def authority_hash(pem: str) -> str:
    """``sha256:<hex>`` over the public key of a PEM certificate (the first in the text).

    Raises:
        JoinError: it is no certificate.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
    except ValueError as error:
        raise JoinError(f"the cluster's authority is not a certificate: {error}") from None
    key = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return f"sha256:{hashlib.sha256(key).hexdigest()}"


def believed(info: Mapping[str, Any], token: Token, hashes: Sequence[str]) -> Cluster:
    """The cluster that a ``cluster-info`` describes, if ``token`` signed it and its authority has one of the ``hashes``
    (no hash given: the signature alone counts).

    Raises:
        JoinError: it is not to be believed.
    """
    data = info.get("data") or {}
    text, signed = data.get(KUBECONFIG), data.get(f"{SIGNATURE}{token.id}")
    if not text:
        raise JoinError(f"the API server's {NAMESPACE}/{NAME} holds no description of the cluster")
    if not signed:
        raise JoinError(
            f'the platform does not know the token id "{token.id}", or the token has expired; '
            "`sampan node token create` there makes another"
        )
    if not is_signed(text, signed, token):
        raise JoinError(
            f'the token\'s secret is not the one that the platform has for id "{token.id}", or somebody else answers at '
            "this address; check the token and the address"
        )
    cluster = read(text)
    if hashes and (found := authority_hash(cluster.authority)) not in [each.lower() for each in hashes]:
        raise JoinError(
            f"the cluster's authority has the hash {found}, not {' or '.join(hashes)}: this is not the cluster you mean"
        )
    return cluster


async def discover(server: str, token: Token, hashes: Sequence[str], clock: Clock) -> Cluster:
    """Ask the API server at ``server`` (base URL) who it is, believing only what the token or a hash proves.

    Raises:
        JoinError: nobody answers, or the answer is not to be believed.
    """
    info = await _fetch(server, anybody(), clock)
    cluster = believed(info, token, hashes)
    trusting = ssl.create_default_context(cadata=cluster.authority)
    again = await _fetch(server, trusting, clock)
    if (again.get("data") or {}).get(KUBECONFIG) != info["data"][KUBECONFIG]:
        raise JoinError("the API server described itself differently when it was asked again; try once more")
    return cluster


def anybody() -> ssl.SSLContext:
    """A TLS context that believes whoever answers: for the one question whose answer proves itself."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


async def _fetch(server: str, context: ssl.SSLContext, clock: Clock) -> Object:
    client = HttpClient(server, context, field_manager="sampan-join", clock=clock)
    try:
        return await client.get(CONFIG_MAPS, NAME, NAMESPACE)
    except ApiError as error:
        if error.code in (401, 403):
            why = "it does not show its description to strangers (is `kubernetes.anonymous` off?)"
        elif error.not_found:
            why = "it has no description of itself: it is no Sampan and was not made by kubeadm"
        else:
            why = str(error)
        raise JoinError(f"{server} cannot be joined: {why}") from None
    finally:
        await client.close()
