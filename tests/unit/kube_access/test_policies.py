"""ValidatingAdmissionPolicy."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sampan.kernel.clock import Clock
from sampan.kube.access.interface import AdmissionRequest, User
from sampan.kube.access.plugins.plugin import PluginContext
from sampan.kube.access.plugins.policy_expressions import PolicyExpressions
from sampan.kube.access.policies import ValidatingPolicies
from sampan.kube.access.rbac import AuthorizerChain, RbacAuthorizer
from sampan.kube.objects import Object
from sampan.kube.resources import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    NAMESPACES,
    VALIDATING_ADMISSION_POLICIES,
    VALIDATING_ADMISSION_POLICY_BINDINGS,
)
from sampan.kube.status import ApiError
from sampan.kube.types.resource import ResourceType, Strategy, TypeRegistry
from tests.unit.kube_access.worlds import Cache, named

RULES = [
    {"apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"], "operations": ["CREATE", "UPDATE"]}
]


class World:
    def __init__(self) -> None:
        self.cache = Cache()
        self.cache.put(NAMESPACES, {"metadata": {"name": "ns", "labels": {"stage": "prod"}}})
        self.types = TypeRegistry(
            [
                ResourceType(DEPLOYMENTS, "Deployment", "deployment", True, Strategy()),
                ResourceType(CONFIG_MAPS, "ConfigMap", "configmap", True, Strategy()),
            ]
        )
        authorizer = AuthorizerChain([RbacAuthorizer(self.cache)])
        self.policies = ValidatingPolicies(self.cache, self.types, authorizer)
        self.bind()

    def policy(self, *validations: Object, **spec: Any) -> None:
        made = {"matchConstraints": {"resourceRules": RULES}, "validations": list(validations), **spec}
        self.cache.put(VALIDATING_ADMISSION_POLICIES, named("p", spec=made))

    def bind(self, **spec: Any) -> None:
        made = {"policyName": "p", "validationActions": ["Deny"], **spec}
        self.cache.put(VALIDATING_ADMISSION_POLICY_BINDINGS, named("b", spec=made))

    async def write(self, replicas: int = 3, **fields: Any) -> AdmissionRequest:
        kind = self.types.find(DEPLOYMENTS)
        assert kind is not None
        obj = named("web", "ns", spec={"replicas": replicas})
        request = AdmissionRequest("CREATE", kind, User("ann"), "ns", "web", obj, **fields)
        await self.policies.validate(request)
        return request


@pytest.fixture
def world() -> World:
    return World()


SMALL = {"expression": "object.spec.replicas <= 5"}


async def test_a_violation_is_denied_with_upstreams_text(world: World) -> None:
    world.policy(SMALL)
    await world.write(5)
    with pytest.raises(ApiError) as refused:
        await world.write(6)
    error = refused.value
    assert (error.code, error.reason) == (422, "Invalid")
    assert error.message == (
        "deployments.apps \"web\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: "
        "failed expression: object.spec.replicas <= 5"
    )


@pytest.mark.parametrize(
    ("validation", "code", "text"),
    [
        ({**SMALL, "message": "too many"}, 422, "denied request: too many"),
        ({**SMALL, "reason": "Forbidden"}, 403, "failed expression"),
        ({**SMALL, "messageExpression": "'at most 5, not ' + string(object.spec.replicas)"}, 422, "at most 5, not 9"),
        ({**SMALL, "message": "m", "messageExpression": "object.spec.none"}, 422, "denied request: m"),
        ({"expression": "variables.limit >= object.spec.replicas"}, 422, "failed expression"),
        ({"expression": "namespaceObject.metadata.labels.stage != 'prod'"}, 422, "failed expression"),
        ({"expression": "authorizer.group('apps').resource('deployments').check('delete').allowed()"}, 422, "failed"),
        ({"expression": "request.operation == 'UPDATE' && oldObject != null"}, 422, "failed expression"),
    ],
)
async def test_messages_reasons_and_variables(world: World, validation: Object, code: int, text: str) -> None:
    variables = [{"name": "base", "expression": "2"}, {"name": "limit", "expression": "variables.base * 2"}]
    world.policy(validation, variables=variables)
    with pytest.raises(ApiError, match=text) as refused:
        await world.write(9)
    assert refused.value.code == code


async def test_bindings_may_warn_and_record_instead(world: World) -> None:
    world.policy(SMALL)
    world.bind(validationActions=["Warn", "Audit"])
    request = await world.write(6)
    message = "failed expression: object.spec.replicas <= 5"
    assert request.warnings == [f"Validation failed for ValidatingAdmissionPolicy 'p' with binding 'b': {message}"]
    recorded = json.loads(request.audit["validation.policy.admission.k8s.io/validation_failure"])
    assert recorded == [
        {
            "message": message,
            "policy": "p",
            "binding": "b",
            "expressionIndex": 0,
            "validationActions": ["Warn", "Audit"],
        }
    ]


async def test_parameters_come_from_the_binding(world: World) -> None:
    kind = {"apiVersion": "v1", "kind": "ConfigMap"}
    world.policy({"expression": "object.spec.replicas <= int(params.data.most)"}, paramKind=kind)
    world.bind(paramRef={"name": "limits", "parameterNotFoundAction": "Deny"})
    with pytest.raises(ApiError, match="no params found for policy binding with `Deny` parameterNotFoundAction"):
        await world.write()
    world.bind(paramRef={"name": "limits", "parameterNotFoundAction": "Allow"})
    await world.write()
    world.cache.put(CONFIG_MAPS, {**named("limits", "ns"), "data": {"most": "2"}})
    with pytest.raises(ApiError, match="failed expression"):
        await world.write(3)
    await world.write(2)


async def test_what_cannot_be_evaluated_fails_as_the_policy_says(world: World) -> None:
    world.policy({"expression": "object.spec.none == 1"})
    with pytest.raises(ApiError, match=r"expression 'object.spec.none == 1' resulted in error: no such key: none"):
        await world.write()
    world.policy({"expression": "object.spec.none == 1"}, SMALL, failurePolicy="Ignore")
    await world.write(3)
    with pytest.raises(ApiError, match="failed expression"):
        await world.write(6)


async def test_match_conditions_exclusions_and_bindings_narrow(world: World) -> None:
    world.policy(SMALL, matchConditions=[{"name": "not-ann", "expression": "request.userInfo.username != 'ann'"}])
    await world.write(9)
    world.policy(SMALL, matchConstraints={"resourceRules": RULES, "excludeResourceRules": RULES})
    await world.write(9)
    world.policy(SMALL)
    world.bind(matchResources={"namespaceSelector": {"matchLabels": {"stage": "test"}}})
    await world.write(9)
    world.bind(matchResources={"namespaceSelector": {"matchLabels": {"stage": "prod"}}})
    with pytest.raises(ApiError):
        await world.write(9)


async def test_audit_annotations_are_computed(world: World) -> None:
    annotation = {"key": "size", "valueExpression": "'replicas: ' + string(object.spec.replicas)"}
    world.policy(SMALL, auditAnnotations=[annotation, {"key": "none", "valueExpression": "null"}])
    assert (await world.write(3)).audit == {"p/size": "replicas: 3"}


async def test_an_expression_that_does_not_compile_is_refused_when_written(world: World) -> None:
    context = PluginContext(world.cache, Clock(), AuthorizerChain([]))
    kind = ResourceType(VALIDATING_ADMISSION_POLICIES, "ValidatingAdmissionPolicy", "p", False, Strategy())
    obj = named("p", spec={"validations": [SMALL, {"expression": "object.spec.("}]})
    request = AdmissionRequest("CREATE", kind, User("ann"), "", "p", obj)
    with pytest.raises(ApiError, match=r"spec.validations\[1\].expression: Invalid value") as refused:
        await PolicyExpressions(context).validate(request)
    assert refused.value.code == 422
