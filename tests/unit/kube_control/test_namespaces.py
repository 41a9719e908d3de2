"""A namespace's life: furnished at birth, emptied before it goes."""

from __future__ import annotations

import pytest

from sampan.kube.control.namespaces import NamespaceController
from sampan.kube.control.service_accounts import ServiceAccountController
from sampan.kube.resources import CONFIG_MAPS, DEPLOYMENTS, NAMESPACES, PODS, SECRETS, SERVICE_ACCOUNTS
from tests.unit.kube_control.conftest import World

POD = {"containers": [{"name": "c", "image": "nginx"}], "nodeName": "node"}


@pytest.fixture
async def controllers(world: World) -> None:
    await ServiceAccountController(world.context, "PEM").start()
    await NamespaceController(world.context, world.types).start()


async def furnished(world: World, name: str) -> None:
    async def there() -> bool:
        account = await world.find(SERVICE_ACCOUNTS, "default", name)
        bundle = await world.find(CONFIG_MAPS, "kube-root-ca.crt", name)
        return account is not None and bundle is not None and bundle["data"] == {"ca.crt": "PEM"}

    await world.until(there)


@pytest.mark.usefixtures("controllers")
async def test_a_namespace_has_its_account_and_certificate_and_gets_them_back(world: World) -> None:
    await world.create(NAMESPACES, "a")
    await furnished(world, "a")
    await world.client.delete(SERVICE_ACCOUNTS, "default", "a")
    await world.client.patch(CONFIG_MAPS, "kube-root-ca.crt", {"data": {"ca.crt": "forged"}}, "a")
    await furnished(world, "a")


@pytest.mark.usefixtures("controllers")
async def test_a_deleted_namespace_takes_its_content_along(world: World) -> None:
    await world.create(NAMESPACES, "a")
    await furnished(world, "a")
    await world.create(SECRETS, "s", "a")
    await world.client.delete(NAMESPACES, "a")
    await world.gone(NAMESPACES, "a")
    for resource in (SECRETS, SERVICE_ACCOUNTS, CONFIG_MAPS):
        assert (await world.client.list(resource, "a")).items == []


@pytest.mark.usefixtures("controllers")
async def test_what_holds_a_namespace_up_is_told_until_it_is_gone(world: World) -> None:
    await world.create(NAMESPACES, "a")
    await world.create(SECRETS, "held", "a", finalizers=["example.com/hold"])
    await world.create(PODS, "running", "a", spec=POD)
    await world.client.delete(NAMESPACES, "a")

    async def told() -> bool:
        namespace = await world.client.get(NAMESPACES, "a")
        conditions = {c["type"]: c for c in namespace["status"].get("conditions", ())}
        return len(conditions) == 5 and conditions["NamespaceFinalizersRemaining"]["message"].endswith(
            "example.com/hold in 1 resource instances"
        )

    await world.until(told)
    namespace = await world.client.get(NAMESPACES, "a")
    assert namespace["status"]["phase"] == "Terminating"
    pod = await world.client.get(PODS, "running", "a")
    assert "deletionTimestamp" not in pod["metadata"], "pods go last"
    await world.client.patch(SECRETS, "held", {"metadata": {"finalizers": None}}, "a")
    world.clock.jump(1)

    async def pod_stopping() -> bool:
        pod = await world.client.get(PODS, "running", "a")
        return "deletionTimestamp" in pod["metadata"]

    await world.until(pod_stopping)
    await world.settle()
    await world.client.delete(PODS, "running", "a", grace_period=0)
    world.clock.jump(1)
    await world.gone(NAMESPACES, "a")


@pytest.mark.usefixtures("controllers")
async def test_workloads_are_deleted_without_waiting_for_anyone(world: World) -> None:
    await world.create(NAMESPACES, "a")
    labels = {"matchLabels": {"app": "x"}}
    template = {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}}
    await world.create(DEPLOYMENTS, "d", "a", spec={"selector": labels, "template": template})
    await world.client.delete(NAMESPACES, "a")
    await world.gone(NAMESPACES, "a")
