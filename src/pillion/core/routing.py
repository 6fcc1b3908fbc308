"""Which replica may answer a `model` (SPEC §2, §4): a pure index over one snapshot.

What cannot be served is an error. It is never answered by the base or by another adapter or version.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import msgspec

from pillion.core import names
from pillion.core.errors import (
    AdapterLoadingError,
    AdapterNotDeployedError,
    AmbiguousRefError,
    BaseMismatchError,
    InvalidRequestError,
    ModelNotFoundError,
    PillionError,
    UnavailableError,
    model_not_found,
)
from pillion.core.snapshot import (
    Adapter,
    Delta,
    Instance,
    Key,
    Model,
    Replica,
    Snapshot,
    same_but_resident,
    with_replicas,
)
from pillion.core.standing import Candidate, Standing

__all__ = ["ADAPTER_HEADER", "Candidate", "Changed", "Route", "Routes", "adapter_loading", "may_load"]

ADAPTER_HEADER = "x-pillion-adapter-id"
MAX_MODEL_LENGTH = 200

_Where = tuple[str | None, str]  # an owner, and a base


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request may go. `echo` is the client's own string.

    `candidates`, at least one: lower tiers first, there those that have it, then the first of those that would have to load
    it; each as ranked for this account and adapter.
    `canary` goes to the adapter's other version, where that is resident anywhere.
    """

    kind: Literal["base", "adapter"]
    account: str
    echo: str
    base: str
    adapter: Adapter | None
    candidates: tuple[Candidate, ...]
    canary: Route | None = None

    @property
    def upstream_name(self) -> str:
        """What is asked for: the same for as long as it is of the same bytes."""
        return self.base if self.adapter is None else self.adapter.engine_name or ""

    @property
    def version(self) -> int | None:
        return None if self.adapter is None else self.adapter.version

    def drawn(self, draw: float) -> Route:
        """The route of the version that a request gets, `draw` being evenly drawn from [0, 1)."""
        if self.canary is None or self.adapter is None or self.adapter.canary is None:
            return self
        return self.canary if draw < self.adapter.canary.share else self

    def upstream_model(self, candidate: Candidate) -> str:
        """The engine's own name for what is to answer."""
        if self.adapter is None:
            return candidate.instance.served_model
        if self.adapter.engine_name is None:
            raise RuntimeError(f"a route to {self.adapter.id}, which has no live version")
        return self.adapter.engine_name


@dataclass(frozen=True, slots=True)
class _Target:
    """What the client named: a base, on one instance or any, and an adapter or none."""

    base: str
    instance: Instance | None = None
    adapter: Adapter | None = None


@dataclass(slots=True)
class _Owned:
    """What one account owns. Lists, so that a broken promise of uniqueness shows instead of picking one."""

    by_id: dict[str, Adapter] = field(default_factory=dict)
    by_row: dict[int, Adapter] = field(default_factory=dict)
    by_name: dict[str, list[Adapter]] = field(default_factory=lambda: defaultdict(list))
    by_label: dict[str, list[Adapter]] = field(default_factory=lambda: defaultdict(list))
    models: dict[str, Model] = field(default_factory=dict)
    standing: dict[str, Standing] = field(default_factory=dict)

    def add(self, adapter: Adapter) -> None:
        self.by_id[adapter.id] = adapter
        self.by_row[adapter.row_id] = adapter
        self.by_name[adapter.name].append(adapter)
        for label in dict.fromkeys(adapter.labels):
            self.by_label[label].append(adapter)


@dataclass(frozen=True, slots=True)
class Changed:
    """What a delta from version `since` may have changed of routes: those of these accounts, bases and engine names, or
    `everything`.
    """

    since: int
    accounts: frozenset[str] = frozenset()
    bases: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    everything: bool = False


class Routes:
    """The index. Building it is linear in the snapshot; a look-up is not. It never changes: `patched` makes another."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.version = snapshot.version
        self.made_at = snapshot.made_at
        self.pepper = snapshot.pepper
        self.epoch = snapshot.epoch
        self.changed: Changed | None = None
        self._keys = snapshot.keys
        self._models = snapshot.models
        self._instances = {instance.id: instance for instance in snapshot.instances}
        owned: dict[str | None, _Owned] = defaultdict(_Owned)
        for adapter in snapshot.adapters:
            owned[adapter.account].add(adapter)
        self._owned: dict[str | None, _Owned] = dict(owned)
        self._nothing = _Owned()
        self._shelve_models()
        self._stand({(instance.account, instance.model) for instance in snapshot.instances}, {})

    def patched(self, delta: Delta) -> Routes:
        """These with a change. Costs what changed, and a copy of the tables by account and by key.

        Raises `ValueError` where `delta` is from another version.
        """
        if delta.since != self.version:
            raise ValueError(f"a delta from version {delta.since} does not fit version {self.version}")
        made = copy(self)
        made.version, made.made_at = delta.version, delta.made_at
        if delta.keys:
            made._keys = dict(self._keys)
            for lookup, key in delta.keys.items():
                if key is None:
                    made._keys.pop(lookup, None)
                else:
                    made._keys[lookup] = key
        if delta.adapters or delta.gone_adapters:
            made._change(delta)
        if delta.models is not None:
            made._models = delta.models
            made._shelve_models()
        bases, names = made._move(delta)
        accounts = {account for account, _ in delta.gone_adapters} | {a.account for a in delta.adapters}
        made.changed = Changed(
            self.version, frozenset(accounts), bases, names, everything=delta.models is not None
        )
        return made

    def _move(self, delta: Delta) -> tuple[frozenset[str], frozenset[str]]:
        """Instances and replicas. Bases of which others may answer now, and engine names that are elsewhere now."""
        if not (delta.instances or delta.gone_instances or delta.replicas):
            return frozenset(), frozenset()
        before, self._instances = self._instances, dict(self._instances)
        for gone in delta.gone_instances:
            self._instances.pop(gone, None)
        self._instances |= {instance.id: instance for instance in delta.instances}
        told = {*delta.gone_instances, *(instance.id for instance in delta.instances)}
        of = (one for id in told for one in (before.get(id), self._instances.get(id)) if one is not None)
        anew: set[_Where] = {(instance.account, instance.model) for instance in of}
        moved: dict[_Where, dict[str, Replica]] = defaultdict(dict)
        names: set[str] = set()
        for id, replicas in delta.replicas_by_instance.items():
            instance = self._instances[id]
            self._instances[id] = with_replicas(instance, replicas)
            where = instance.account, instance.model
            for old in instance.replicas:
                if (new := replicas.get(old.id)) is None:
                    continue
                if same_but_resident(old, new):
                    names |= old.resident ^ new.resident
                    moved[where][new.id] = new
                else:
                    anew.add(where)
        self._stand(anew, moved)
        return frozenset(model for _, model in anew), frozenset(names)

    def _stand(self, anew: Collection[_Where], moved: Mapping[_Where, Mapping[str, Replica]]) -> None:
        """Puts instances with their owners. What others of these share is replaced, never written to."""
        found: dict[_Where, list[Instance]] = {where: [] for where in anew}
        for id in sorted(self._instances) if anew else ():
            instance = self._instances[id]
            if (where := (instance.account, instance.model)) in found:
                found[where].append(instance)
        self._owned = dict(self._owned)
        for owner, model in {*anew, *moved}:
            owned = self._owned.get(owner, self._nothing)
            standing, before = dict(owned.standing), owned.standing.get(model)
            if (instances := found.get((owner, model))) is not None:
                standing[model] = Standing(instances, before)
                if not instances:
                    del standing[model]
            elif before is not None:
                instances = [self._instances[instance.id] for instance in before.instances]
                standing[model] = before.moved(instances, moved[owner, model])
            self._owned[owner] = replace(owned, standing=standing)

    def _change(self, delta: Delta) -> None:
        """Adapters that are new, other or gone: the accounts they are or were of are indexed anew."""
        moved: dict[str, dict[int, Adapter | None]] = defaultdict(dict)
        for account, row_id in delta.gone_adapters:
            moved[account][row_id] = None
        for adapter in delta.adapters:
            moved[adapter.account][adapter.row_id] = adapter
        self._owned = dict(self._owned)
        for account, rows in moved.items():
            owned = self._owned.get(account, self._nothing)
            anew = _Owned(models=owned.models, standing=owned.standing)
            for now in {**owned.by_row, **rows}.values():
                if now is not None:
                    anew.add(now)
            self._owned[account] = anew

    def _shelve_models(self) -> None:
        """Puts models with their owners."""
        models: dict[str | None, dict[str, Model]] = defaultdict(dict)
        for model in self._models:
            models[model.account][model.name] = model
        before = {account for account, owned in self._owned.items() if owned.models}
        self._owned = dict(self._owned)
        for account in before | models.keys():
            owned = self._owned.get(account, self._nothing)
            self._owned[account] = replace(owned, models=models.get(account, {}))

    def key(self, lookup: str) -> Key | None:
        return self._keys.get(lookup)

    def shared_model(self, name: str) -> Model | None:
        """The catalogue's model of this name."""
        return self._owned.get(None, self._nothing).models.get(name)

    def instance(self, account: str, instance_id: int) -> Instance | None:
        """The account's own or a pool's instance; None for what is unknown and for what is not theirs."""
        instance = self._instances.get(instance_id)
        return instance if instance is not None and instance.account in (account, None) else None

    def resolve(self, account: str, model: str, adapter_ref: str | None, now: float) -> Route:
        """The route for a request's `model` and adapter header.

        Errors: `model_not_found`, `base_mismatch`, `ambiguous_ref`, `adapter_not_deployed`,
        `adapter_loading`, `no_healthy_replica`, `invalid_request` where the base speaks no OpenAI.
        """
        target = self._target(account, model)
        if adapter_ref is not None:
            target = self._with_adapter(target, self._by_ref(account, adapter_ref), model)
        return self._route(account, target, model, now)

    def list_models(self, account: str, now: float) -> list[dict[str, Any]]:
        """OpenAI's model objects for what `resolve` would route now: bases, instances, both forms of adapters."""
        entries: list[dict[str, Any]] = []
        for name in sorted(self._model_names(account)):
            instances = [i for i in self._speaking(account, name) if any(r.ready for r in i.replicas)]
            if instances:
                created = min(instance.created_at for instance in instances)
                entries.append(_entry(name, created, self._model_owner(account, name)))
                entries += [_entry(f"{name}:{i.id}", i.created_at, i.account) for i in instances]
        for _, adapter in sorted(self._of(account).by_row.items()):
            if self._servable(account, adapter, now):
                forms = [f"{label}:{adapter.row_id}" for label in adapter.labels[:1]]
                forms.append(f"{adapter.base}:{adapter.name}")
                entries += [_entry(form, adapter.created_at, account, adapter.base) for form in forms]
        return entries

    def _of(self, account: str | None) -> _Owned:
        return self._owned.get(account, self._nothing)

    def _model_names(self, account: str) -> set[str]:
        mine, shared = self._of(account), self._of(None)
        return {*mine.models, *shared.models, *mine.standing, *shared.standing}

    def _model_owner(self, account: str, name: str) -> str | None:
        return account if name in self._of(account).models else None

    def _knows_model(self, account: str, name: str) -> bool:
        return any(name in o.models or name in o.standing for o in (self._of(account), self._of(None)))

    def _standing(self, account: str, model: str) -> list[Standing]:
        """The account's own first, then the pools'."""
        owned = (self._of(account), self._of(None))
        return [found for one in owned if (found := one.standing.get(model)) is not None]

    def _speaking(self, account: str, model: str) -> list[Instance]:
        return [i for standing in self._standing(account, model) for i in standing.speaking]

    def _target(self, account: str, model: str) -> _Target:
        parsed = names.parse_model(model)
        if parsed is None:
            raise model_not_found(model[:MAX_MODEL_LENGTH])
        meanings = list(self._meanings(account, parsed))
        if not meanings:
            raise model_not_found(model)
        if len(meanings) > 1:
            raise AmbiguousRefError(
                f"The model '{model}' names more than one of your models and adapters. Rename one of them.",
                param="model",
            )
        return meanings[0]

    def _meanings(self, account: str, parsed: names.ModelString) -> Iterator[_Target]:
        mine = self._of(account)
        if parsed.tail is None:
            if self._knows_model(account, parsed.head):
                yield _Target(parsed.head)
        elif parsed.row_id is not None:
            for adapter in mine.by_label.get(parsed.head, ()):
                if adapter.row_id == parsed.row_id:
                    yield _Target(adapter.base, adapter=adapter)
            instance = self.instance(account, parsed.row_id)
            if instance is not None and instance.model == parsed.head:
                yield _Target(parsed.head, instance=instance)
        else:
            for adapter in mine.by_name.get(parsed.tail, ()):
                if adapter.base == parsed.head:
                    yield _Target(adapter.base, adapter=adapter)

    def _by_ref(self, account: str, text: str) -> Adapter:
        mine, ref, found = self._of(account), names.parse_ref(text), list[Adapter | None]()
        if ref is not None and ref.id is not None:
            found = [mine.by_id.get(ref.id)]
        elif ref is not None and ref.row_id is not None:
            found = [mine.by_row.get(ref.row_id)]
        elif ref is not None and ref.name is not None:
            found = [*mine.by_name.get(ref.name, ())]
        adapters = [adapter for adapter in found if adapter is not None]
        if not adapters:
            raise adapter_not_found(text[:MAX_MODEL_LENGTH])
        if len(adapters) > 1:
            message = f"The adapter '{text}' names more than one. Use its id."
            raise AmbiguousRefError(message, param=ADAPTER_HEADER)
        return adapters[0]

    def _with_adapter(self, target: _Target, adapter: Adapter, model: str) -> _Target:
        if target.adapter is not None and target.adapter.id != adapter.id:
            raise BaseMismatchError(
                f"The model '{model}' and the header {ADAPTER_HEADER} name two adapters. Send one of them.",
                param=ADAPTER_HEADER,
            )
        if target.base != adapter.base:
            raise BaseMismatchError(
                f"The adapter '{adapter.name}' belongs to the base '{adapter.base}', but model is '{model}'.",
                param=ADAPTER_HEADER,
            )
        return _Target(target.base, target.instance, adapter)

    def _route(self, account: str, target: _Target, echo: str, now: float) -> Route:
        if target.adapter is None:
            candidates = self._base_candidates(account, target, echo)
        else:
            candidates = self._adapter_candidates(account, target.adapter, target.instance, now)
        kind: Literal["base", "adapter"] = "base" if target.adapter is None else "adapter"
        canary = self._canary(account, target, echo, now)
        return Route(kind, account, echo, target.base, target.adapter, candidates, canary)

    def _canary(self, account: str, target: _Target, echo: str, now: float) -> Route | None:
        adapter = target.adapter
        if adapter is None or adapter.canary is None:
            return None
        other = msgspec.structs.replace(
            adapter,
            version=adapter.canary.version,
            engine_name=adapter.canary.engine_name,
            permit=None,  # it is never loaded for a request
            canary=None,
        )
        try:
            return self._route(account, replace(target, adapter=other), echo, now)
        except PillionError:
            return None

    def _base_candidates(self, account: str, target: _Target, echo: str) -> tuple[Candidate, ...]:
        standing, only = self._standing(account, target.base), target.instance
        instances = [i for one in standing for i in one.instances] if only is None else [only]
        if not instances:
            raise _runs_nowhere(target.base)
        if not any(instance.openai_compatible for instance in instances):
            raise _speaks_no_openai(instances[0])
        affinity, id = f"{account}/{target.base}", None if only is None else only.id
        ready = tuple(candidate for one in standing for candidate in one.everyone(affinity, id))
        if not ready:
            raise _nobody_ready(f"of '{echo}'")
        return ready

    def _adapter_candidates(
        self, account: str, adapter: Adapter, only: Instance | None, now: float
    ) -> tuple[Candidate, ...]:
        if adapter.expires_at is not None and now >= adapter.expires_at:
            raise _not_deployed(adapter, "its time to live is over")
        if adapter.engine_name is None:
            raise _not_deployed(adapter, "no version of it is live")
        hosts = [i for i in self._hosts(account, adapter) if only is None or i.id == only.id]
        if not hosts and only is not None:
            raise _not_deployed(adapter, f"instance {only.id} does not have it")
        if not hosts:
            raise _not_deployed(adapter, "no running instance has it or loads on demand")
        affinity = f"{account}/{adapter.id}"
        able = tuple(
            candidate
            for one in self._standing(account, adapter.base)
            for candidate in one.able(affinity, adapter, hosts, lambda instance: _takes(instance, adapter))
        )
        if able:
            return able
        if not _any_ready(hosts, adapter.region):
            raise _nobody_ready(f"that may serve the adapter '{adapter.name}'")
        raise adapter_loading(adapter)

    def _hosts(self, account: str, adapter: Adapter) -> list[Instance]:
        """Where the adapter is wanted or may be loaded on demand: on instances of its base that its owner can see."""
        wanted = frozenset(adapter.instances)
        return [
            instance
            for instance in self._speaking(account, adapter.base)
            if instance.id in wanted or _takes(instance, adapter)
        ]

    def _servable(self, account: str, adapter: Adapter, now: float) -> bool:
        try:
            self._adapter_candidates(account, adapter, None, now)
        except PillionError:
            return False
        return True


def adapter_not_found(ref: str) -> ModelNotFoundError:
    """The one answer for an adapter in the header that is unknown or another account's, byte for byte."""
    return ModelNotFoundError(
        f"The adapter '{ref}' does not exist or you do not have access to it. GET /v1/adapters lists yours.",
        param=ADAPTER_HEADER,
    )


def adapter_loading(adapter: Adapter) -> AdapterLoadingError:
    message = f"The adapter '{adapter.name}' is being loaded. Try again in a second."
    return AdapterLoadingError(message, retry_after=1.0)


def may_load(candidate: Candidate, adapter: Adapter) -> bool:
    """Whether a request for the adapter may load it there, and there is somebody to ask."""
    return candidate.replica.agent_url is not None and _takes(candidate.instance, adapter)


def _takes(instance: Instance, adapter: Adapter) -> bool:
    return instance.on_demand and adapter.permit is not None and adapter.rank <= instance.max_rank


def _any_ready(instances: Iterable[Instance], region: str | None) -> bool:
    return any(
        replica.ready and (region is None or replica.region == region)
        for instance in instances
        for replica in instance.replicas
    )


def _not_deployed(adapter: Adapter, reason: str) -> AdapterNotDeployedError:
    ref = f"/v1/adapters/{adapter.id}"
    return AdapterNotDeployedError(
        f"The adapter '{adapter.name}' cannot be served: {reason}. "
        f"GET {ref}/eligible-instances lists where it could be; "
        f'then POST {ref}/deploy {{"attach": {{"instance_id": N}}}}, or POST {ref}/load.',
        param="model",
    )


def _nobody_ready(of: str) -> UnavailableError:
    return UnavailableError(f"No replica {of} is ready now. Try again shortly.", retry_after=2.0)


def _runs_nowhere(base: str) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"The model '{base}' runs nowhere that you can call. Launch an instance: "
        f'POST /v1/instances {{"model": "{base}"}}.',
        param="model",
    )


def _speaks_no_openai(instance: Instance) -> InvalidRequestError:
    path = f"/inference-instances/{instance.id}/proxy{instance.custom_api_path or '/…'}"
    return InvalidRequestError(f"'{instance.model}' does not speak OpenAI's API. Call {path}.", param="model")


def _entry(name: str, created: float, owner: str | None, parent: str | None = None) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": int(created),
        "owned_by": owner or "pillion",
        "parent": parent,
    }
