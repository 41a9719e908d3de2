"""Bootstrap tokens: their form, their Secret, and signing with them."""

from __future__ import annotations

import base64
import json

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampan.kube.joining import discovery
from sampan.kube.joining.tokens import (
    JoinError,
    Token,
    is_signed,
    secret_data,
    secret_object,
    signature,
    token_of,
)

TOKEN = Token("abcdef", "0123456789abcdef")


def test_a_new_token_has_the_form_that_is_read() -> None:
    made = {Token.new() for _ in range(20)}
    assert len(made) == 20
    assert all(Token.parse(str(token)) == token for token in made)


@pytest.mark.parametrize(
    "text",
    ["", "abcdef", "abcdef.short", "ABCDEF.0123456789abcdef", "abcdef.0123456789abcdef0", "abcdef-0123456789abcdef"],
)
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(JoinError, match="not of the form"):
        Token.parse(text)


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")  # the length is upstream's
@given(st.text(max_size=300))
def test_a_signature_is_the_detached_jws_that_others_make(content: str) -> None:
    whole = jwt.api_jws.encode(content.encode(), TOKEN.secret, "HS256", headers={"kid": TOKEN.id, "typ": None})
    header, _, mac = whole.split(".")
    assert is_signed(content, f"{header}..{mac}", TOKEN)
    ours = signature(content, TOKEN)
    first, last = ours.split("..")
    payload = base64.urlsafe_b64encode(content.encode()).rstrip(b"=").decode()
    assert jwt.api_jws.decode(f"{first}.{payload}.{last}", TOKEN.secret, ["HS256"]) == content.encode()


@given(st.text(max_size=60), st.text(max_size=60))
def test_only_the_token_and_the_text_it_signed_fit(content: str, other: str) -> None:
    signed = signature(content, TOKEN)
    assert is_signed(content, signed, TOKEN)
    assert is_signed(other, signed, TOKEN) == (other == content)
    assert not is_signed(content, signed, Token("abcdef", "0123456789abcdeg"))
    assert not is_signed(content, signed, Token("abcdeg", "0123456789abcdef"))


@given(st.text(max_size=80))
def test_no_text_is_taken_for_a_signature(text: str) -> None:
    assert not is_signed("content", text, TOKEN)


def test_a_signature_without_a_key_is_none() -> None:
    header = base64.urlsafe_b64encode(json.dumps({"alg": "none", "kid": TOKEN.id}).encode()).decode()
    assert not is_signed("content", f"{header}..", TOKEN)


def test_a_secret_holds_a_token_and_what_it_is_for() -> None:
    made = secret_object(TOKEN, expiration="2030-01-01T00:00:00Z", usages=["signing"], description="for a test")
    assert made["metadata"] == {"name": "bootstrap-token-abcdef", "namespace": "kube-system"}
    assert secret_data(made) == {
        "token-id": "abcdef",
        "token-secret": "0123456789abcdef",
        "description": "for a test",
        "expiration": "2030-01-01T00:00:00Z",
        "auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token",
        "usage-bootstrap-signing": "true",
    }
    assert token_of(made) == TOKEN
    made["metadata"]["name"] = "bootstrap-token-zzzzzz"
    assert token_of(made) is None


@pytest.mark.parametrize(("usages", "groups"), [(["cooking"], []), ([], []), (["signing"], ["system:masters"])])
def test_a_token_cannot_be_for_anything(usages: list[str], groups: list[str]) -> None:
    with pytest.raises(JoinError):
        secret_object(TOKEN, usages=usages, groups=groups)


AUTHORITY = "-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----\n"


def info(token: Token = TOKEN) -> dict[str, dict[str, str]]:
    text = discovery.described("https://10.0.0.1:6443", AUTHORITY)
    return {"data": {"kubeconfig": text, f"jws-kubeconfig-{token.id}": signature(text, token)}}


def test_a_signed_description_is_believed() -> None:
    assert discovery.believed(info(), TOKEN, []) == discovery.Cluster("https://10.0.0.1:6443", AUTHORITY)


def test_an_unsigned_or_foreign_description_is_not() -> None:
    with pytest.raises(JoinError, match='does not know the token id "zzzzzz"'):
        discovery.believed(info(), Token("zzzzzz", TOKEN.secret), [])
    with pytest.raises(JoinError, match="the token's secret is not the one"):
        discovery.believed(info(), Token("abcdef", "f" * 16), [])
    with pytest.raises(JoinError, match="holds no description"):
        discovery.believed({}, TOKEN, [])
    forged = info()
    forged["data"]["kubeconfig"] = forged["data"]["kubeconfig"].replace("10.0.0.1", "10.0.0.2")
    with pytest.raises(JoinError, match="the token's secret is not the one"):
        discovery.believed(forged, TOKEN, [])
