"""Which model a name means for a tenant, and which revision answers: pure, from one index."""

import hashlib
import math
import uuid

from finetune_api import serving


class Table:
    """One index, for look-ups. Names of clients are only ever compared with its names."""

    def __init__(self, index: serving.Index) -> None:
        self.index = index
        self.held = {adapter.sha256: adapter for adapter in index.adapters}
        self.routed = {route.sha256 for model in index.models for route in model.routes if route.weight}
        self._models: dict[str, dict[str, serving.Served]] = {}
        for model in index.models:
            self._models.setdefault(model.namespace, {})[model.name] = model
        self._by_adapter = _by_adapter(index) if index.rewritten else {}

    def names(self, namespaces: frozenset[str]) -> dict[str, serving.Served]:
        """What clients send, and the model that it means: NAME, or NAMESPACE/NAME where two of the namespaces have one."""
        found: dict[str, serving.Served] = {}
        models = [model for one in sorted(namespaces) for model in self._models.get(one, {}).values()]
        names = [model.name for model in models]
        for model in models:
            alone = len(namespaces) == 1 or names.count(model.name) == 1
            found[model.name if alone else f"{model.namespace}/{model.name}"] = model
        return found

    def find(self, name: str, namespaces: frozenset[str]) -> serving.Served | None:
        """The model of this name in the namespaces, or with this adapter, where an endpoint picker may have put it in place of
        the name (Index.rewritten); None where there is none, or several."""
        found = [models[name] for one in namespaces if name in (models := self._models.get(one, {}))]
        if len(found) == 1:
            return found[0]
        namespace, _, rest = name.partition("/")
        if namespace in namespaces and rest in self._models.get(namespace, {}):
            return self._models[namespace][rest]
        adapters = [self._by_adapter[one, name] for one in namespaces if (one, name) in self._by_adapter]
        return adapters[0] if len(adapters) == 1 else None

    def called(self, name: str, model: serving.Served) -> str:
        """How clients call the model that they, or an endpoint picker, named so."""
        return model.name if name in self.held else name


def _by_adapter(index: serving.Index) -> dict[tuple[str, str], serving.Served]:
    """(namespace, adapter) -> the model for which it answers; without a share of the traffic, one of its job's.

    A job has two models while a former name drains.
    """
    jobs = {(model.namespace, model.job): model for model in index.models}
    of_jobs = ((one, jobs.get((one.namespace, one.job))) for one in index.adapters)
    found = {(one.namespace, one.sha256): model for one, model in of_jobs if model is not None}
    routed = ((model, route) for model in index.models for route in model.routes if route.weight)
    return found | {(model.namespace, route.sha256): model for model, route in routed}


def choose(model: serving.Served, value: str | None, name: str = "") -> serving.Route:
    """The revision that answers a request: that whose adapter is `name`, if it has a share of the traffic; else by weight, and
    the same for the same value of `value`.

    Weighted rendezvous hashing: each revision draws a number from value and revision, its weight scales it, the highest wins. A
    revision whose weight grows only wins values, and the others only lose them, in whatever order the index lists them.
    """
    for route in model.routes:
        if route.sha256 == name and route.weight:
            return route
    if len(model.routes) == 1:
        return model.routes[0]
    value = value or uuid.uuid4().hex
    return max(
        (route for route in model.routes if route.weight > 0),
        key=lambda route: route.weight / -math.log(_uniform(model, route, value)),
        default=model.routes[0],
    )


def _uniform(model: serving.Served, route: serving.Route, value: str) -> float:
    """Above 0, below 1."""
    text = f"{model.namespace}\0{model.name}\0{route.revision}\0{value}"
    number = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    return ((number >> 12) + 0.5) / (1 << 52)
