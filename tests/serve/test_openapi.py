"""The OpenAPI document, and requests made from it: valid ones and broken ones."""

import json
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from serving import Running, told

from stretto.serve.app import entries
from stretto.serve.auth import ADMIN
from stretto.serve.models import alone
from stretto.serve.service import Config, Service


def document() -> dict[str, Any]:
    service = Service(Config(names=("toy",)))
    page = next(entry for entry in entries(alone(service)) if entry.path == "/openapi.json")
    assert page.kind is None
    return _documents(service)


def _documents(service: Service) -> dict[str, Any]:
    from stretto.serve.openapi import document as make

    found: dict[str, Any] = json.loads(json.dumps(make(entries(alone(service)))))
    return found


# Every field at its limits once: these two routes share theirs with others.
_AGAIN = [{"include-path": path, "phases": {"coverage": {"enabled": False}}}
          for path in ("/v1/responses", "/v1/messages/count_tokens")]  # fmt: skip
_CONFIG = schemathesis.Config.from_dict({"operations": _AGAIN})
schema = schemathesis.openapi.from_dict(document(), config=_CONFIG)


def test_it_names_every_route(scripted: Running) -> None:
    page = scripted.http.get("/openapi.json").json()
    assert page == document() and page["openapi"].startswith("3.1")
    named = {(method.upper(), path) for path, methods in page["paths"].items() for method in methods}
    routes = {(e.method, e.path.replace("{id:path}", "{id}")) for e in entries(scripted.models)}
    assert named == routes
    assert page["paths"]["/health"]["get"]["security"] == [] and "security" not in page["paths"]["/v1/models"]["get"]
    chat = page["components"]["schemas"]["ChatRequest"]
    assert chat["required"] == ["messages"] and chat["properties"]["n"]["anyOf"][0]["maximum"] == 128


@schema.parametrize()
@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_no_request_is_more_than_refused(case: schemathesis.Case, scripted: Running) -> None:
    response = case.call(base_url=scripted.url)
    refused = 403 if case.path.startswith(ADMIN) else 200
    assert response.status_code in (200, 400, 404, 405, 408, 413, 415, refused), response.text
    if response.status_code >= 400:
        _, message = told(case.path, response)
        assert message and "Traceback" not in response.text and "0x" not in message
    assert response.headers["x-request-id"]


def test_the_server_has_survived(scripted: Running) -> None:
    assert scripted.chat()["choices"][0]["finish_reason"] == "length"
    assert pytest.importorskip("schemathesis")
