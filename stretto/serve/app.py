"""The application: every route in one table, and what stands around them.

Frame (id, log line, problems) > CORS, if an origin is allowed > Guard (keys, Host) > the routes
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Scope

from stretto.serve import adapters, admin, files, monitor, prefixes, system, texts
from stretto.serve.anthropic.route import count_tokens, create_message
from stretto.serve.anthropic.schema import CountRequest, MessagesRequest
from stretto.serve.auth import PAGE, PAGE_FOLDER, Guard, Keys
from stretto.serve.call import Call
from stretto.serve.chat import chat
from stretto.serve.completions import complete
from stretto.serve.embeddings import embeddings
from stretto.serve.endpoint import Post, never
from stretto.serve.frame import Frame
from stretto.serve.json import Json
from stretto.serve.models import Models
from stretto.serve.ollama import about
from stretto.serve.ollama.embed import embed_prompt, embed_texts
from stretto.serve.ollama.generate import chat as ollama_chat
from stretto.serve.ollama.generate import generate, is_work
from stretto.serve.ollama.pull import Puller
from stretto.serve.ollama.schema import (
    OllamaChat,
    OllamaEmbed,
    OllamaEmbeddings,
    OllamaGenerate,
    PullRequest,
    ShowRequest,
)
from stretto.serve.openapi import Entry, document
from stretto.serve.responses.route import respond
from stretto.serve.responses.schema import ResponsesRequest
from stretto.serve.schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    LoadPrefixRequest,
    ModelRequest,
    SavePrefixRequest,
    TemplateRequest,
    TokenizeRequest,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may ask. keys: empty = nobody is asked for one; admin_keys: for what changes this machine; loopback_only:
    requests must name this machine; origins: of the pages that browsers may let ask; behind_front: as in `Guard`."""

    keys: Sequence[str] = ()
    admin_keys: Sequence[str] = ()
    loopback_only: bool = False
    origins: Sequence[str] = ()
    behind_front: bool = False


def make_app(models: Models, access: Access) -> ASGIApp:
    """The server of `models`, for those whom `access` lets in."""
    routes = [Route(one.path, one.endpoint, methods=[one.method]) for one in entries(models)]
    routes += [
        Route(PAGE, system.Plain(models, files.index), methods=["GET"]),
        Route(PAGE_FOLDER + "{name}", system.Plain(models, files.file), methods=["GET"]),
    ]
    return guarded(Router(routes, redirect_slashes=False), access, models.first.metrics.rejected)


def guarded(app: ASGIApp, access: Access, rejected: Callable[[str], None]) -> ASGIApp:
    """What stands around the routes of every server. rejected: hears why a request was refused."""
    app = Guard(
        app,
        Keys(access.keys),
        admin_keys=Keys(access.admin_keys),
        loopback_only=access.loopback_only,
        origins=access.origins,
        behind_front=access.behind_front,
    )
    if access.origins:
        app = CORSMiddleware(
            app,
            allow_origins=list(access.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-api-key", "x-request-id", "anthropic-version"],
            expose_headers=["x-request-id", "retry-after", "x-should-retry"],
        )
    return Frame(app, rejected)


def entries(models: Models) -> list[Entry]:
    """Every route of the API: all there are but the files of the web page."""

    def get(path: str, summary: str, answer: system.Answer, media_type: str = "application/json") -> Entry:
        return Entry("GET", path, summary, system.Plain(models, answer), media_type=media_type)

    async def openapi(call: Call, scope: Scope) -> ASGIApp:
        return Json(page)

    found = [
        get("/health", "Whether the engine lives", system.health),
        get("/v1/health", "Whether the engine lives", system.health),
        get("/ping", "Whether the engine lives", system.health),
        get("/ready", "Whether new work is taken", system.ready),
        get("/version", "Of this server", system.version),
        get("/metrics", "For Prometheus", system.metrics, "text/plain"),
        get("/openapi.json", "This document", openapi),
        get("/v1/models", "What is served", system.models),
        get("/v1/models/{id:path}", "One model", system.model),
        get("/stretto/state", "What the engine is doing", monitor.state),
        get("/stretto/trace", "What it did lately, for Perfetto", monitor.trace),
        Entry("POST", "/v1/requests/{id}/cancel", "End a request", system.Plain(models, system.cancel)),
        Entry("POST", "/v1/chat/completions", "Answer a conversation", Post(models, ChatRequest, chat), ChatRequest),
        Entry("POST", "/v1/completions", "Continue texts", Post(models, CompletionRequest, complete),
              CompletionRequest),
        Entry("POST", "/v1/responses", "Answer a conversation of items", Post(models, ResponsesRequest, respond),
              ResponsesRequest),
        Entry("POST", "/v1/messages", "Answer a conversation of blocks", Post(models, MessagesRequest, create_message),
              MessagesRequest),
        Entry("POST", "/v1/messages/count_tokens", "Tokens of a conversation of blocks",
              Post(models, CountRequest, count_tokens), CountRequest),
        Entry("POST", "/v1/embeddings", "Texts as vectors", Post(models, EmbeddingRequest, embeddings),
              EmbeddingRequest),
        get("/api/version", "Of this server", about.version),
        get("/api/tags", "What is served", about.tags),
        get("/api/ps", "What is loaded", about.running),
        Entry("POST", "/api/show", "One model", Post(models, ShowRequest, about.show, loads=never), ShowRequest),
        Entry("POST", "/api/chat", "Answer a conversation, in lines",
              Post(models, OllamaChat, ollama_chat, loads=is_work), OllamaChat, media_type="application/x-ndjson"),
        Entry("POST", "/api/generate", "Answer a prompt, in lines",
              Post(models, OllamaGenerate, generate, loads=is_work), OllamaGenerate, media_type="application/x-ndjson"),
        Entry("POST", "/api/embed", "Texts as vectors", Post(models, OllamaEmbed, embed_texts), OllamaEmbed),
        Entry("POST", "/api/embeddings", "A text as a vector", Post(models, OllamaEmbeddings, embed_prompt),
              OllamaEmbeddings),
        Entry("POST", "/api/pull", "Fetch a model (admin key)",
              Post(models, PullRequest, Puller(), loads=never), PullRequest, media_type="application/x-ndjson"),
        Entry("POST", "/admin/models/load", "Load a model (admin key)",
              Post(models, ModelRequest, admin.load, loads=never), ModelRequest),
        Entry("POST", "/admin/models/unload", "Unload a model (admin key)",
              Post(models, ModelRequest, admin.unload, loads=never), ModelRequest),
        Entry("POST", "/admin/lora/load", "Load an adapter (admin key)",
              Post(models, adapters.LoadLora, adapters.load), adapters.LoadLora),
        Entry("POST", "/admin/lora/unload", "Unload an adapter (admin key)",
              Post(models, adapters.UnloadLora, adapters.unload), adapters.UnloadLora),
        Entry("POST", "/admin/prefix/save", "Keep what a text left in the cache (admin key)",
              Post(models, SavePrefixRequest, prefixes.save), SavePrefixRequest),
        Entry("POST", "/admin/prefix/load", "Put it into the cache (admin key)",
              Post(models, LoadPrefixRequest, prefixes.load), LoadPrefixRequest),
        Entry("POST", "/tokenize", "Ids of a text", Post(models, TokenizeRequest, texts.tokenize), TokenizeRequest),
        Entry("POST", "/detokenize", "Text of ids", Post(models, DetokenizeRequest, texts.detokenize),
              DetokenizeRequest),
        Entry("POST", "/apply-template", "The text that the model reads",
              Post(models, TemplateRequest, texts.apply_template), TemplateRequest),
    ]  # fmt: skip
    page = document(found)
    return found
