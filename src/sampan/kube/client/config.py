"""Where the API server is and who one is to it: from a kubeconfig, or from inside a pod.

`default_config` looks where kubectl and client-go look: the files of ``$KUBECONFIG``, ``~/.kube/config``, then the
ServiceAccount that every pod has mounted. All of this reads files: call it outside the event loop.
"""

from __future__ import annotations

import base64
import binascii
import os
import ssl
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sampan.kernel.errors import SampanError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where pods find token, ca.crt and namespace."""


class ClientConfigError(SampanError):
    """No usable configuration; the message says which file, and what is wrong with it."""


@dataclass(frozen=True)
class ClientConfig:
    """How to reach an API server, and as whom."""

    server: str
    """Base URL."""
    tls: ssl.SSLContext | None = None
    """Trusts the server and presents the client certificate; None for plain HTTP, or the machine's own trust."""
    server_name: str | None = None
    """The name the server's certificate must carry, where it is not the URL's host."""
    namespace: str = "default"
    token: str = ""
    token_file: Path | None = None
    """Wins over ``token``; read again as it is rotated."""
    basic: tuple[str, str] | None = None
    """User name and password."""


def default_config(context: str | None = None) -> ClientConfig:
    """The configuration that kubectl would use here, or the pod's own.

    Raises:
        ClientConfigError: there is none, or it is not usable.
    """
    named = [Path(each) for each in os.environ.get("KUBECONFIG", "").split(os.pathsep) if each]
    paths = [path for path in named or [Path.home() / ".kube" / "config"] if path.exists()]
    if paths:
        return from_kubeconfig(paths, context)
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return in_cluster()
    raise ClientConfigError("no kubeconfig ($KUBECONFIG, ~/.kube/config), and this is not a pod")


def in_cluster(folder: Path = SERVICE_ACCOUNT) -> ClientConfig:
    """The configuration of a pod: its environment and its ServiceAccount's files.

    Raises:
        ClientConfigError: this is not a pod, or the files are missing.
    """
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT")
    if not host or not port:
        raise ClientConfigError("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set: this is not a pod")
    try:
        (folder / "token").read_bytes()
        tls = ssl.create_default_context(cafile=str(folder / "ca.crt"))
        space = folder / "namespace"
        namespace = space.read_text().strip() if space.exists() else "default"
    except (OSError, ssl.SSLError) as error:
        raise ClientConfigError(f"the pod's ServiceAccount in {folder} is not usable: {error}") from None
    shown = f"[{host}]" if ":" in host else host
    return ClientConfig(f"https://{shown}:{port}", tls, namespace=namespace, token_file=folder / "token")


def from_kubeconfig(paths: Path | Sequence[Path], wanted: str | None = None) -> ClientConfig:
    """A kubeconfig's current (or named) context; of several files the first that names something wins.

    Raises:
        ClientConfigError: a file cannot be read, names no such context, or wants an unsupported way to log in.
    """
    paths = [paths] if isinstance(paths, Path) else paths
    where = ", ".join(map(str, paths))
    try:
        config = _merged(paths)
        context, _ = _entry(config, "context", wanted or config["current-context"])
        cluster, beside = _entry(config, "cluster", context["cluster"])
        user, home = _entry(config, "user", context["user"]) if context.get("user") else ({}, beside)
        for unsupported in ("exec", "auth-provider"):
            if unsupported in user:
                raise ClientConfigError(
                    f"{where}: logging in by {unsupported} is not supported; use a certificate or a token"
                )
        server = str(cluster["server"])
        tls = _tls(cluster, beside, user, home) if server.startswith("https:") else None
    except (OSError, KeyError, TypeError, ValueError, AttributeError, ssl.SSLError, binascii.Error) as error:
        raise ClientConfigError(f"{where} is not a usable kubeconfig: {error}") from None
    token_file = user.get("tokenFile")
    return ClientConfig(
        server,
        tls,
        server_name=cluster.get("tls-server-name"),
        namespace=context.get("namespace") or "default",
        token=user.get("token") or "",
        token_file=home / token_file if token_file else None,
        basic=(user["username"], user.get("password") or "") if user.get("username") else None,
    )


def _merged(paths: Sequence[Path]) -> dict[str, Any]:
    """One configuration out of several files; each entry remembers the folder its relative paths start from."""
    import yaml

    merged: dict[str, Any] = {"contexts": {}, "clusters": {}, "users": {}}
    for path in paths:
        try:
            config = yaml.safe_load(path.read_text()) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"{path}: {error}") from None
        if config.get("current-context"):
            merged.setdefault("current-context", config["current-context"])
        for section in ("contexts", "clusters", "users"):
            for entry in config.get(section) or ():
                content = entry.get(section.removesuffix("s")) or {}
                merged[section].setdefault(entry["name"], (content, path.parent))
    return merged


def _entry(config: Mapping[str, Any], kind: str, name: str) -> tuple[Mapping[str, Any], Path]:
    try:
        found: tuple[Mapping[str, Any], Path] = config[f"{kind}s"][name]
    except KeyError:
        raise ValueError(f'it has no {kind} "{name}"') from None
    return found


def _tls(cluster: Mapping[str, Any], beside: Path, user: Mapping[str, Any], home: Path) -> ssl.SSLContext:
    trusted = _content(cluster, "certificate-authority", beside)
    tls = ssl.create_default_context(cadata=trusted.decode() if trusted else None)
    if cluster.get("insecure-skip-tls-verify"):
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    certificate, key = _content(user, "client-certificate", home), _content(user, "client-key", home)
    if certificate and key:
        with tempfile.NamedTemporaryFile() as pair:  # 0600; the ssl module reads certificates from files only
            pair.write(certificate + b"\n" + key)
            pair.flush()
            tls.load_cert_chain(pair.name)
    return tls


def _content(fields: Mapping[str, Any], name: str, folder: Path) -> bytes | None:
    """The bytes of ``name-data`` or of the file that ``name`` names (relative to the kubeconfig's folder)."""
    if data := fields.get(f"{name}-data"):
        return base64.b64decode(data, validate=True)
    if file := fields.get(name):
        return (folder / str(file)).read_bytes()
    return None
