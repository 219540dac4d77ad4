"""What a client may see and name, by its key and the index: for the gateway before an engine, and for the activator."""

from typing import Any

from aiohttp import web

from finetune_api import serving
from finetune_trainer.gateway import index, proxy, routing, settings, tenants


class Access:
    """The models of a key, and their list."""

    def __init__(self, options: settings.Settings, follower: index.Follower) -> None:
        self._options, self._index = options, follower
        self._tenants = tenants.Tenants(options.keys, options.namespace)

    def known(self, request: web.Request) -> tuple[frozenset[str], routing.Table]:
        """The key's namespaces, and the index. Raises Refusal."""
        try:
            namespaces = self._tenants.namespaces(request.headers.get("Authorization"))
        except tenants.Unknown as unknown:
            raise proxy.Refusal(401, str(unknown), "invalid_api_key") from None
        if self._index.table is None:
            raise proxy.Refusal(
                503, "this pod does not know its models yet; send the request again", "not_ready", after=5
            )
        return namespaces, self._index.table

    def find(self, name: str, namespaces: frozenset[str], table: routing.Table) -> serving.Served | None:
        """The model of this name; None for the base model, where clients may use it. Raises Refusal."""
        model = table.find(name, namespaces)
        if model is None and not (self._options.serve_base_model and name == self._options.base_model):
            raise proxy.unknown(name)
        return model

    def routes(self, app: web.Application) -> None:
        """Adds the list of models."""
        app.router.add_get("/v1/models", self._list)
        app.router.add_get("/v1/models/{name:.+}", self._one)

    async def _list(self, request: web.Request) -> web.Response:
        namespaces, table = self.known(request)
        entries = [entry(name, model.namespace) for name, model in table.names(namespaces).items()]
        if self._options.serve_base_model:
            entries.append(entry(self._options.base_model, self._options.namespace))
        return web.json_response({"object": "list", "data": entries})

    async def _one(self, request: web.Request) -> web.Response:
        namespaces, table = self.known(request)
        name = request.match_info["name"]
        model = self.find(name, namespaces, table)
        return web.json_response(entry(name, model.namespace if model else self._options.namespace))


def entry(name: str, owner: str) -> dict[str, Any]:
    """A model, as OpenAI's API lists it."""
    return {"id": name, "object": "model", "created": 0, "owned_by": owner}
