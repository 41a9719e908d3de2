"""Credentials, tokens and impersonation."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import jwt
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jwt.types import Options
from multidict import CIMultiDict

from sampan.kernel.clock import Clock, Timeline
from sampan.kube.access.authentication import RequestAuthenticator, StaticTokens, certificate_user, proxy_headers
from sampan.kube.access.interface import MASTER, User
from sampan.kube.access.rbac import AuthorizerChain, RbacAuthorizer
from sampan.kube.access.reviews import (
    SELF_SUBJECT_ACCESS_REVIEWS,
    SELF_SUBJECT_REVIEWS,
    SELF_SUBJECT_RULES_REVIEWS,
    SUBJECT_ACCESS_REVIEWS,
    TOKEN_REVIEWS,
    AccessReviews,
)
from sampan.kube.access.tokens import SECONDS_POD, SigningKey, SigningKeyError, TokenError, Tokens
from sampan.kube.objects import Object
from sampan.kube.resources import CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, PODS, SECRETS, SERVICE_ACCOUNTS
from sampan.kube.status import ApiError
from tests.unit.kube_access.worlds import Cache, binding, named, rule

STANDING_STILL = Timeline(origin=0.0, base=0.0, wall_offset=1_800_000_000.0, rate=0.0)


class World:
    """An authenticator over a hand-made cache, with one ServiceAccount and one pod of its."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock(STANDING_STILL)
        self.cache = Cache()
        self.account = named("robot", "ns")
        self.pod = named("p", "ns", spec={"serviceAccountName": "robot", "nodeName": "n1"})
        self.cache.put(SERVICE_ACCOUNTS, self.account)
        self.cache.put(PODS, self.pod)
        self.key = SigningKey(folder / "key.pem")
        self.tokens = Tokens(self.key, self.cache, self.clock)
        self.rbac = RbacAuthorizer(self.cache)
        self.authorizer = AuthorizerChain([self.rbac])
        self.authenticator = self.with_static({})
        self.reviews = AccessReviews(self.authenticator, self.authorizer, self.rbac, self.clock)

    def with_static(self, users: dict[str, User], **options: Any) -> RequestAuthenticator:
        return RequestAuthenticator(
            cache=self.cache,
            clock=self.clock,
            tokens=self.tokens,
            static=StaticTokens(users),
            authorizer=self.authorizer,
            **options,
        )

    def token(self, **spec: Any) -> str:
        answer = self.tokens.request(MASTER, self.account, {"spec": spec})
        token: str = answer["status"]["token"]
        return token

    async def user(self, token: str, **headers: str) -> User | None:
        given_headers = CIMultiDict({"authorization": f"Bearer {token}"} if token else {})
        given_headers.update({key.replace("_", "-"): value for key, value in headers.items()})
        return await self.authenticator.authenticate(given_headers, None)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def pod_reference(pod: Object) -> Object:
    return {"apiVersion": "v1", "kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}


async def test_a_requested_token_is_its_service_account_until_it_expires(world: World) -> None:
    token = world.token()
    user = await world.user(token)
    assert user is not None
    assert user.name == "system:serviceaccount:ns:robot"
    assert user.groups == ("system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated")
    assert user.uid == "uid-robot"
    world.clock.jump(3599)
    assert await world.user(token) == user
    world.clock.jump(2)
    with pytest.raises(ApiError) as refused:
        await world.user(token)
    assert refused.value.code == 401


async def test_a_bound_token_dies_with_its_pod(world: World) -> None:
    token = world.token(boundObjectRef=pod_reference(world.pod))
    user = await world.user(token)
    assert user is not None
    assert user.extra["authentication.kubernetes.io/pod-name"] == ("p",)
    assert user.extra["authentication.kubernetes.io/node-name"] == ("n1",)
    world.cache.put(PODS, {**world.pod, "metadata": {**world.pod["metadata"], "uid": "another"}})
    with pytest.raises(ApiError):
        await world.user(token)
    world.cache.drop(PODS, "ns", "p")
    with pytest.raises(TokenError, match="its pod p is gone"):
        world.tokens.verify(token)


async def test_a_token_dies_with_its_service_account(world: World) -> None:
    token = world.token()
    world.cache.put(SERVICE_ACCOUNTS, {"metadata": {"name": "robot", "namespace": "ns", "uid": "reborn"}})
    with pytest.raises(ApiError):
        await world.user(token)


async def test_the_token_a_pod_asks_for_lives_a_year_and_says_when_to_renew(world: World) -> None:
    token = world.token(expirationSeconds=SECONDS_POD, boundObjectRef=pod_reference(world.pod))
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == 365 * 24 * 3600
    assert claims["kubernetes.io"]["warnafter"] - claims["iat"] == SECONDS_POD
    world.clock.jump(30 * 24 * 3600)
    assert await world.user(token) is not None


def test_tokens_are_for_their_audiences(world: World) -> None:
    token = world.token(audiences=["vault"])
    with pytest.raises(TokenError, match="audiences"):
        world.tokens.verify(token)
    verified = world.tokens.verify(token, ["vault", "other"])
    assert verified is not None
    assert verified.audiences == ("vault",)


def test_anyone_can_verify_a_token_with_the_published_keys(world: World) -> None:
    token = world.token()
    key = jwt.PyJWKSet.from_dict(world.tokens.keys())[jwt.get_unverified_header(token)["kid"]]
    # the world's clock stands at a time of its own, so the times are left to the tests above
    options: Options = {"verify_exp": False, "verify_iat": False, "verify_nbf": False}
    issuer = world.tokens.issuer
    claims = jwt.decode(token, key, algorithms=["ES256"], audience=issuer, issuer=issuer, options=options)
    assert claims["sub"] == "system:serviceaccount:ns:robot"
    assert world.tokens.discovery()["issuer"] == world.tokens.issuer


@pytest.mark.parametrize(
    ("spec", "code", "text"),
    [
        ({"expirationSeconds": 599}, 422, "may not specify a duration less than 10 minutes"),
        ({"expirationSeconds": (1 << 32) + 1}, 422, "larger than 2^32 seconds"),
        ({"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "gone"}}, 404, 'pods "gone" not found'),
        ({"boundObjectRef": {"kind": "Pod", "name": "p", "uid": "other"}}, 409, "does not match the UID in record"),
        ({"boundObjectRef": {"kind": "Deployment", "name": "p"}}, 400, "cannot bind token to object"),
    ],
)
def test_a_token_request_that_cannot_be_met_says_why(world: World, spec: Object, code: int, text: str) -> None:
    with pytest.raises(ApiError, match=text.replace("^", r"\^")) as refused:
        world.token(**spec)
    assert refused.value.code == code


def test_a_pod_of_another_account_cannot_be_bound(world: World) -> None:
    world.cache.put(PODS, named("q", "ns", spec={"serviceAccountName": "other"}))
    with pytest.raises(ApiError, match="pod running with different serviceaccount name"):
        world.token(boundObjectRef={"kind": "Pod", "name": "q"})


async def test_a_secrets_token_is_good_while_the_secret_holds_it(world: World) -> None:
    secret = named("s", "ns", type="kubernetes.io/service-account-token")
    token = world.tokens.legacy(world.account, secret)
    world.cache.put(SECRETS, {**secret, "data": {"token": base64.b64encode(token.encode()).decode()}})
    assert (await world.user(token) or MASTER).name == "system:serviceaccount:ns:robot"
    world.cache.put(SECRETS, {**secret, "data": {"token": "b3RoZXI="}})
    with pytest.raises(ApiError):
        await world.user(token)


async def test_another_platforms_token_is_refused(world: World, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    foreign = World(tmp_path / "elsewhere")
    with pytest.raises(ApiError):
        await world.user(foreign.token())


def test_the_key_is_kept_and_private(world: World, tmp_path: Path) -> None:
    world.tokens.prepare()
    again = SigningKey(tmp_path / "key.pem")
    assert again.key_id == world.key.key_id
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_no_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("nonsense")
    with pytest.raises(SigningKeyError, match=r"key\.pem cannot be read as a key"):
        SigningKey(tmp_path / "key.pem").load()


TEXTS = st.text(max_size=80)
DOTTED = st.lists(st.text(alphabet="abcXYZ09_-=", max_size=30), min_size=3, max_size=3).map(".".join)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(text=st.one_of(TEXTS, DOTTED))
def test_no_text_is_a_token_by_chance(world: World, text: str) -> None:
    with pytest.raises(TokenError):
        world.authenticator.bearer(text)


async def test_the_administrators_token_is_made_once(tmp_path: Path, world: World) -> None:
    token, static = StaticTokens.administrator(tmp_path / "admin.token")
    again, _ = StaticTokens.administrator(tmp_path / "admin.token")
    assert token == again
    assert (tmp_path / "admin.token").stat().st_mode & 0o777 == 0o600
    assert static.find(token) == MASTER
    assert static.find(token[:-1]) is None


async def test_a_client_certificate_names_user_and_groups(world: World) -> None:
    certificate = {
        "subject": ((("organizationName", "dev"),), (("organizationName", "ops"),), (("commonName", "ann"),))
    }
    user = await world.authenticator.authenticate(CIMultiDict(), certificate)
    assert user == User("ann", ("dev", "ops", "system:authenticated"))
    assert certificate_user({"subject": ((("organizationName", "dev"),),)}) is None


async def test_without_credentials_one_is_anonymous_or_turned_away(world: World) -> None:
    assert await world.user("") is None
    strict = world.with_static({}, anonymous=False)
    with pytest.raises(ApiError):
        await strict.authenticate(CIMultiDict(), None)
    with pytest.raises(ApiError):
        await world.user("nonsense")


async def test_only_the_front_proxy_may_name_somebody_else(world: World) -> None:
    headers = CIMultiDict(proxy_headers(User("ann", ("dev", "ops"), extra={"Team/a": ("x",)})))
    proxy = {"subject": ((("commonName", "front-proxy-client"),),)}
    other = {"subject": ((("commonName", "bob"),),)}
    ann = await world.authenticator.authenticate(headers, proxy)
    assert ann == User("ann", ("dev", "ops", "system:authenticated"), extra={"team/a": ("x",)})
    bob = await world.authenticator.authenticate(headers, other)
    assert bob is not None
    assert bob.name == "bob"


def encoded(**data: str) -> Object:
    return {key.replace("_", "-"): base64.b64encode(value.encode()).decode() for key, value in data.items()}


async def test_a_bootstrap_token_joins_until_it_expires(world: World) -> None:
    data = encoded(
        token_id="abcdef",
        token_secret="0123456789abcdef",
        usage_bootstrap_authentication="true",
        auth_extra_groups="system:bootstrappers:edge,system:masters",
        expiration=world.clock.now().replace(microsecond=0).isoformat(),
    )
    secret = named("bootstrap-token-abcdef", "kube-system", type="bootstrap.kubernetes.io/token", data=data)
    world.cache.put(SECRETS, secret)
    with pytest.raises(ApiError):
        await world.user("abcdef.0123456789abcdef")
    del data["expiration"]
    user = await world.user("abcdef.0123456789abcdef")
    groups = ("system:bootstrappers", "system:bootstrappers:edge", "system:authenticated")
    assert user == User("system:bootstrap:abcdef", groups)
    with pytest.raises(ApiError):
        await world.user("abcdef.0123456789abcdeX")


async def test_impersonation_needs_the_verb_for_every_part(world: World) -> None:
    world.authenticator = world.with_static({"root": MASTER, "ann": User("ann", ("system:authenticated",))})
    world.cache.put(CLUSTER_ROLES, named("as-bob", rules=[rule([""], ["users"], ["impersonate"], ["bob"])]))
    world.cache.put(CLUSTER_ROLE_BINDINGS, binding("b", ("ClusterRole", "as-bob"), ("User", "ann")))
    bob = await world.user("ann", Impersonate_User="bob")
    assert bob == User("bob", ("system:authenticated",))
    with pytest.raises(ApiError, match='groups "ops" is forbidden: User "ann" cannot impersonate resource "groups"'):
        await world.user("ann", Impersonate_User="bob", Impersonate_Group="ops")
    with pytest.raises(ApiError, match='users "eve" is forbidden'):
        await world.user("ann", Impersonate_User="eve")
    robot = await world.user("root", Impersonate_User="system:serviceaccount:ns:robot", Impersonate_Extra_Team="x")
    groups = ("system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated")
    assert robot == User("system:serviceaccount:ns:robot", groups, extra={"team": ("x",)})
    with pytest.raises(ApiError) as refused:
        await world.user("root", Impersonate_Group="ops")
    assert refused.value.code == 500


HEADERS = (
    "Authorization",
    "Impersonate-User",
    "Impersonate-Group",
    "Impersonate-Uid",
    "Impersonate-Extra-a%2Fb",
    "Sec-WebSocket-Protocol",
    "X-Remote-User",
    "X-Remote-Group",
    "X-Remote-Extra-%ff",
)
# as an HTTP server decodes bytes of any kind
RAW = st.binary(max_size=24).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
VALUES = st.one_of(RAW, RAW.map("Bearer {}".format), RAW.map("base64url.bearer.authorization.k8s.io.{}".format))
PROXY = {"subject": ((("commonName", "front-proxy-client"),),)}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.lists(st.tuples(st.sampled_from(HEADERS), VALUES), max_size=4), st.sampled_from([None, {}, PROXY]))
def test_no_headers_do_more_than_be_refused(world: World, given_headers: Any, certificate: Any) -> None:
    world.authenticator = world.with_static({"root": MASTER})
    try:
        user = asyncio.run(world.authenticator.authenticate(CIMultiDict(given_headers), certificate))
    except ApiError as error:
        assert error.code in (400, 401, 403, 500)
        msgspec.json.encode(error.status())
    else:
        assert user is None or user.name == "front-proxy-client" or certificate is PROXY
        if user is not None:
            msgspec.json.encode([user.name, user.groups, user.uid, user.extra])


async def test_a_bootstrap_secret_with_strange_letters_is_no_trap(world: World) -> None:
    data = encoded(token_id="abcdef", token_secret="sécret", usage_bootstrap_authentication="true")
    world.cache.put(
        SECRETS, named("bootstrap-token-abcdef", "kube-system", type="bootstrap.kubernetes.io/token", data=data)
    )
    with pytest.raises(ApiError) as refused:
        await world.user("abcdef.0123456789abcdef")
    assert refused.value.code == 401


async def test_reviews_answer_who_and_whether(world: World) -> None:
    token = world.token()
    answer = await world.reviews.create(MASTER, TOKEN_REVIEWS, "", {"spec": {"token": token}})
    assert answer["status"]["authenticated"] is True
    assert answer["status"]["user"]["username"] == "system:serviceaccount:ns:robot"
    bad = await world.reviews.create(MASTER, TOKEN_REVIEWS, "", {"spec": {"token": token + "x"}})
    assert "authenticated" not in bad["status"]
    assert bad["status"]["error"].startswith("invalid bearer token")

    me = await world.reviews.create(User("ann", ("dev",)), SELF_SUBJECT_REVIEWS, "", {})
    assert me["status"]["userInfo"] == {"username": "ann", "groups": ["dev"]}

    world.cache.put(CLUSTER_ROLES, named("r", rules=[rule([""], ["pods"], ["get"])]))
    world.cache.put(CLUSTER_ROLE_BINDINGS, binding("b", ("ClusterRole", "r"), ("Group", "dev")))
    wanted = {"resourceAttributes": {"verb": "get", "resource": "pods", "namespace": "ns"}}
    ann = User("ann", ("dev",))
    can = await world.reviews.create(ann, SELF_SUBJECT_ACCESS_REVIEWS, "", {"spec": wanted})
    assert can["status"]["allowed"] is True
    assert "RBAC: allowed by ClusterRoleBinding" in can["status"]["reason"]
    spec = {**wanted, "user": "eve"}
    cannot = await world.reviews.create(MASTER, SUBJECT_ACCESS_REVIEWS, "", {"spec": spec})
    assert cannot["status"] == {"allowed": False}
    with pytest.raises(ApiError) as refused:
        await world.reviews.create(ann, SELF_SUBJECT_ACCESS_REVIEWS, "", {"spec": {}})
    assert refused.value.code == 422

    rules = await world.reviews.create(ann, SELF_SUBJECT_RULES_REVIEWS, "", {"spec": {"namespace": "ns"}})
    assert rules["status"]["resourceRules"] == [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]
    assert rules["status"]["incomplete"] is False
