"""What is wanted, and of what is written down of it what is not so any more. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pillion.control import plan
from pillion.core.replica import Replica, ReplicaStatus
from pillion.store.rows import Attachment, Instance, InstanceState, RoutedAdapter


@dataclass
class Wishes:
    """One consistent read of what is wanted, with what is going away."""

    instances: dict[int, Instance] = field(default_factory=dict)
    attachments: list[Attachment] = field(default_factory=list)
    adapters: dict[int, RoutedAdapter] = field(default_factory=dict)
    staying: dict[str, RoutedAdapter] = field(default_factory=dict)  # on demand, by public id
    moving: list[RoutedAdapter] = field(default_factory=list)  # those with a flip or a canary

    def on(self, instance: int) -> list[Attachment]:
        return [a for a in self.attachments if a.instance_id == instance]

    def instance_states(
        self, replicas: Sequence[Replica], facts: Mapping[str, ReplicaStatus], unseen: Collection[str]
    ) -> list[tuple[Instance, InstanceState]]:
        """Those that are others. `unseen`: regions of which nothing is known yet."""
        found = []
        for instance in self.instances.values():
            if _may_be_in(instance, unseen):
                continue
            state = plan.instance_state(instance, _of(instance.id, replicas), facts)
            if state != instance.state:
                found.append((instance, state))
        return found

    def attachment_moves(
        self, replicas: Sequence[Replica], facts: Mapping[str, ReplicaStatus], unseen: Collection[str]
    ) -> list[tuple[Attachment, plan.AttachmentFacts]]:
        """Attachments whose facts have moved. Those of an instance that has ended are gone with it."""
        changed = []
        for attachment in self.attachments:
            adapter = self.adapters[attachment.adapter_row_id]
            instance = self.instances.get(attachment.instance_id)
            if instance is None:
                changed.append((attachment, plan.AttachmentFacts("detaching", 0, 0, None, True)))
                continue
            if _may_be_in(instance, unseen):
                continue
            region = adapter.adapter.region
            found = plan.attachment_facts(
                attachment,
                adapter,
                plan.in_region(_of(instance.id, replicas), region),
                facts,
                plan.expected_in(plan.spec_of(instance), region),
            )
            if _changed(attachment, found):
                changed.append((attachment, found))
        return changed


def _of(instance: int, replicas: Iterable[Replica]) -> list[Replica]:
    return [replica for replica in replicas if replica.instance == instance]


def _may_be_in(instance: Instance, regions: Collection[str]) -> bool:
    """Whether it may have replicas there."""
    return not plan.spec_of(instance).placement.keys().isdisjoint(regions)


def _changed(attachment: Attachment, facts: plan.AttachmentFacts) -> bool:
    if attachment.state == "detaching":
        return facts.gone
    code = facts.failure.code if facts.failure else None
    before = (attachment.state, attachment.ready, attachment.wanted, attachment.error_code)
    return before != (facts.state, facts.ready, facts.wanted, code)
