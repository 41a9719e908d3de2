"""What a Route's traffic comes to: targets resolved to revisions, and how an internal Ingress and a status tell of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from sampan.kube.control.interface import Informer
from sampan.kube.objects import Key, Object, dig
from sampan.parts.serving import keys
from sampan.parts.serving.rollouts import ConfigurationRollout, RevisionShare, Rollout


@dataclass(slots=True)
class Target:
    """One traffic target resolved to a revision."""

    revision: Object
    percent: int
    tag: str = ""
    latest: bool = False
    configuration: str = ""


@dataclass(slots=True)
class Assignment:
    """All targets, or why they cannot be had."""

    targets: list[Target] = field(default_factory=list)
    problem: tuple[str, str, str] | None = None
    """(condition status, reason, message)."""
    configurations: set[str] = field(default_factory=set)
    revisions: set[str] = field(default_factory=set)


def not_owned(route: Object, revision: Object) -> str:
    """What is wrong when a Service's Route names the revision of something else."""
    service = dig(route, "metadata", "labels", keys.SERVICE)
    theirs = dig(revision, "metadata", "labels", keys.SERVICE)
    if not service or service == theirs:
        return ""
    name = revision["metadata"]["name"]
    if not theirs:
        return f'Revision "{name}" does not belong to Service "{service}".'
    return f'Revision "{name}" belongs to Service "{theirs}", not Service "{service}".'


def was_routable(revision: Object) -> bool:
    """A revision that once was ready keeps its traffic when its pods fail later."""
    return bool(dig(revision, "metadata", "annotations", keys.ROUTES)) and bool(
        dig(revision, "status", "actualReplicas")
    )


def timeouts(targets: list[Target]) -> str:
    """The revisions' timeouts as the Ingress carries them."""
    fields = ("timeoutSeconds", "responseStartTimeoutSeconds", "idleTimeoutSeconds")
    found = {
        one.revision["metadata"]["name"]: [int(one.revision["spec"].get(name) or 0) for name in fields]
        for one in targets
    }
    return msgspec.json.encode(found, order="sorted").decode()


def goal(assignment: Assignment) -> Rollout:
    """The rollout's goal: every latest-revision target on its newest revision."""
    return Rollout(
        [
            ConfigurationRollout(
                target.configuration,
                target.tag,
                target.percent,
                [RevisionShare(target.revision["metadata"]["name"], target.percent)],
            )
            for target in assignment.targets
            if target.latest
        ]
    )


def spread(assignment: Assignment, rollout: Rollout, revisions: Informer, namespace: str) -> list[Target]:
    """Targets with latest-revision ones spread over the revisions of a running rollout."""
    running = {(one.configuration_name, one.tag): one for one in rollout.configurations if one.running}
    spread: list[Target] = []
    for target in assignment.targets:
        shares = running.get((target.configuration, target.tag)) if target.latest else None
        if shares is None:
            spread.append(target)
            continue
        for share in shares.revisions:
            revision = revisions.get(Key(namespace, share.revision_name))
            if revision is not None:
                spread.append(
                    Target(revision, share.percent, target.tag, latest=True, configuration=target.configuration)
                )
    return spread


def rows(targets: list[Target]) -> list[Target]:
    """Status rows: untagged targets of one revision are one row."""
    rows: list[Target] = []
    for target in targets:
        same = next(
            (
                one
                for one in rows
                if not target.tag
                and not one.tag
                and one.latest == target.latest
                and one.revision["metadata"]["name"] == target.revision["metadata"]["name"]
            ),
            None,
        )
        if same is not None:
            same.percent += target.percent
        else:
            rows.append(Target(target.revision, target.percent, target.tag, target.latest, target.configuration))
    return rows


def splits(targets: list[Target], *, whole: bool) -> list[Object]:
    """Ingress splits; under a tag's own host the percentages of its revisions are scaled to the whole."""
    total = sum(one.percent for one in targets)
    splits = []
    for position, target in enumerate(targets):
        percent = target.percent
        if whole:
            percent = round(100 * target.percent / total) if total else (100 if position == 0 else 0)
        name, namespace = target.revision["metadata"]["name"], target.revision["metadata"]["namespace"]
        if percent:
            splits.append(
                {
                    "serviceNamespace": namespace,
                    "serviceName": name,
                    "servicePort": 80,
                    "percent": percent,
                    "appendHeaders": {"Knative-Serving-Namespace": namespace, "Knative-Serving-Revision": name},
                }
            )
    return splits
