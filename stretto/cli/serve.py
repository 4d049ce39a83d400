"""`stretto serve`: an OpenAI-compatible server. Settings and address are checked before anything is loaded."""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stretto.cli._loras import read_loras
from stretto.cli._models import Place, check_size, client_names, places
from stretto.cli._replicas import check_replicas, end_with_front, serve_replicas
from stretto.cli._settings import settings
from stretto.cli._terminal import note, print_json, progress
from stretto.core.card import ROUTES
from stretto.core.collector import collector_paused
from stretto.core.env import process_variables, read_env
from stretto.core.errors import UserError
from stretto.core.files import read_text
from stretto.core.option import argument, option
from stretto.core.settings import Configuration
from stretto.core.spec import read_spec

if TYPE_CHECKING:
    from socket import socket

    from stretto.llm import LLM
    from stretto.serve.app import Access

EXAMPLES = (
    "stretto serve smollm2",
    "STRETTO_API_KEY=secret stretto serve smollm2 --host 0.0.0.0 --served-model-name small",
    "stretto serve smollm2 ./large.gguf --models-memory 24GiB --idle-unload 300",
    "stretto serve ./model.gguf --ctx 8192 --max-seqs 16 --port 0 --json",
)
KEY_VARIABLE, ADMIN_VARIABLE = "STRETTO_API_KEY", "STRETTO_ADMIN_KEY"
FRONT_VARIABLE = "STRETTO_FRONT_KEY"  # set by the front process of `--replicas`, for its replicas
LONGEST_KEY = 1024


def _check_route(value: str, what: str) -> None:
    read_spec(value, ROUTES, what)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Options of `stretto serve`."""

    model: str = argument("an alias such as smollm2, a .gguf file or a checkpoint directory")
    more: tuple[str, ...] = argument("further models, loaded when they are asked for", default=())
    host: str = option("address to listen on; one that other machines reach needs a key", default="127.0.0.1")
    port: int = option("port to listen on, 0 for a free one", default=8000, low=0, high=65535)
    uds: Path | None = option("a Unix socket, for this user alone, in place of host and port", default=None)
    api_key: tuple[str, ...] = option(
        f"key that clients must send; may be repeated (default: {KEY_VARIABLE}; other users of this machine can read"
        " what stands on a command line)",
        default=(),
    )
    api_key_file: Path | None = option("file with a key per line", default=None)
    admin_key: tuple[str, ...] = option(
        f"key for what changes this machine, such as pulling models; may be repeated (default: {ADMIN_VARIABLE};"
        " without one, nobody may)",
        default=(),
    )
    no_auth: bool = option("ask for no key on any address: something in front of this server does", default=False)
    cors_origin: tuple[str, ...] = option(
        "let pages of this origin ask, such as https://example.org; may be repeated", default=(), metavar="ORIGIN"
    )
    served_model_name: tuple[str, ...] = option(
        "name of the model for clients; may be repeated; of several models one each, in order (default: as it was"
        " given, without folders)",
        default=(),
    )
    models_memory: str | None = option(
        "what all loaded models may take, weights and caches (default: of several models 90% of what is free)",
        default=None,
        metavar="SIZE",
        check=check_size,
    )
    models_max: int | None = option("models that are loaded at a time", default=None, low=1, high=1024)
    idle_unload: float | None = option(
        "seconds without a request after which a model is unloaded; requests to Ollama's routes may say otherwise"
        " (`keep_alive`)",
        default=None,
        low=1,
        high=1e8,
    )
    lora: tuple[str, ...] = option(
        "an adapter to load, which is a model of this name to clients; may be repeated", default=(), metavar="NAME=PATH"
    )
    lora_dir: Path | None = option(
        "folder from which the admin key may load adapters by their file names; --max-loras is how many",
        default=None,
        metavar="DIR",
    )
    reasoning_format: str = option(
        "auto tells the thinking of models that think from the answer; none leaves all of it in the text",
        default="auto",
        choices=("auto", "none"),
    )
    strict: bool = option("refuse requests with unknown fields, in place of a line in the log", default=False)
    max_waiting: int = option("requests queued or running at a time; more are refused", default=1024, low=1)
    max_queued_tokens: int | None = option(
        "tokens of prompts that wait; one more is refused, unless none waits (default: 8 times what the cache holds)",
        default=None,
        low=1,
    )
    max_connections: int = option("connections at a time; more are refused", default=512, low=1, high=1 << 16)
    drain_timeout: float = option(
        "seconds that running requests have to finish at SIGTERM or Ctrl-C; a second one ends at once",
        default=30.0,
        low=0,
        high=86400,
    )
    stuck_seconds: float = option(
        "an engine that has work and does not come round for so long is not healthy, and the log says where it stands",
        default=120.0,
        low=0.1,
        high=86400,
    )
    exit_when_stuck: bool = option("end with status 1 then, for a supervisor to start anew", default=False)
    replicas: int = option(
        "processes that serve the model side by side, each with its own share of cores and cache", default=1, low=1,
        high=256,
    )  # fmt: skip
    route: str = option(
        "which replica answers: prefix goes back to the one that has read the text before, least has least to do, round"
        " takes turns",
        default="prefix",
        metavar="SPEC",
        check=_check_route,
    )
    metrics_prefix: str = option("of the names at /metrics", default="stretto", choices=("stretto", "vllm"))
    prefix_dir: Path | None = option(
        "folder of prefixes that /admin/prefix/save writes and /admin/prefix/load reads (default: neither may)",
        default=None,
        metavar="DIR",
    )
    json: bool = option("when the model is ready, print one JSON object with the address", default=False)
    configuration: Configuration = settings()


def run(options: Options) -> int:
    """Serve until a signal says not to."""
    keys = keys_of(options, process_variables().get(KEY_VARIABLE, ""))
    admin_keys = admin_keys_of(options, process_variables().get(ADMIN_VARIABLE, ""))
    given, names, settings = (options.model, *options.more), names_of(options), options.configuration.settings
    loras = read_loras(options.lora, options.lora_dir, settings, model_names=list(chain.from_iterable(names)))
    if options.replicas > 1:
        check_replicas(options)
    found, memory = places(given, names, settings, options.models_memory, read_env())
    with collector_paused():
        from prometheus_client import disable_created_metrics

        from stretto.serve.address import url_of
        from stretto.serve.log import to_stream
    disable_created_metrics()  # type: ignore[no-untyped-call]
    listening, access = _listen(options, keys, admin_keys)
    url = url_of(listening)
    to_stream()
    note(f"listening on {url}, loading {options.model}")

    def ready(llm: "LLM") -> None:
        facts = facts_of(llm, url, options)
        note(
            f"ready: {facts['model']} at {url}, {facts['backend']}, context {facts['context']:,} tokens, cache"
            f" {facts['kv_tokens']:,} tokens, loaded in {llm.load_s:.1f} s"
        )
        if options.json:
            print_json(facts)

    if front_key := process_variables().get(FRONT_VARIABLE, ""):
        access = replace(access, keys=(front_key,), admin_keys=(front_key,), behind_front=True)
        end_with_front()
    try:
        if options.replicas > 1:
            number = asyncio.run(serve_replicas(options, found[0].path, access, listening, url))
        else:
            number = asyncio.run(_serve(options, access, listening, found, memory, loras.named, ready))
    finally:
        listening.close()
        if options.uds is not None:
            options.uds.unlink(missing_ok=True)
    return 128 + number if number else 0


def _load(place: Place, loras: Mapping[str, Path], *, stays: bool) -> "LLM":
    """stays: until the process ends, as the only model does."""
    with collector_paused(for_good=stays):
        from stretto.llm import LLM

        show = progress(f"loading {place.given}")
        try:
            return LLM(place.path, place.settings, progress=show, note=note, loras=loras)
        finally:
            show(1, 1)


def keys_of(options: Options, variable: str) -> tuple[str, ...]:
    """The keys that were given, in the order flag, file; else the one in the variable. Raises UserError."""
    keys = list(options.api_key)
    if options.api_key_file is not None:
        lines = read_text(options.api_key_file, "--api-key-file").splitlines()
        keys += [line.strip() for line in lines if line.strip()]
        if not keys:
            raise UserError(f"--api-key-file {options.api_key_file} holds no key", why="it is empty")
    if not keys and variable:
        keys = [variable]
    _check_keys(keys)
    if keys and options.no_auth:
        raise UserError("--no-auth and API keys exclude each other", why="--no-auth asks nobody for a key")
    return tuple(keys)


def admin_keys_of(options: Options, variable: str) -> tuple[str, ...]:
    """The admin keys that were given, else the one in the variable. Raises UserError."""
    keys = options.admin_key or ((variable,) if variable else ())
    _check_keys(keys)
    return keys


def _check_keys(keys: Sequence[str]) -> None:
    for key in keys:
        if not key.isascii() or not key.isprintable() or " " in key or not 0 < len(key) <= LONGEST_KEY:
            raise UserError("an API key must be printable ASCII without spaces", why="clients send it in a header")


def names_of(options: Options) -> list[tuple[str, ...]]:
    """Of each model, for clients."""
    return client_names((options.model, *options.more), options.served_model_name)


def facts_of(llm: "LLM", url: str, options: Options) -> dict[str, Any]:
    """What `--json` prints."""
    engine = llm.engine
    from stretto.llm.tally import Tally

    counts = Tally().counts(engine)
    return {
        "url": url,
        "pid": os.getpid(),
        "model": names_of(options)[0][0],
        "backend": llm.backend_choice.name,
        "context": engine.runner.sizes.context,
        "kv_tokens": counts.cache_tokens,
        "state_slots": counts.slots,
        "loras": list(llm.loras.names),
        "settings": llm.settings.as_dict(),
    }


def _listen(options: Options, keys: Sequence[str], admin_keys: Sequence[str]) -> "tuple[socket, Access]":
    from stretto.serve.address import access_for, listen, listen_at, resolve
    from stretto.serve.app import Access

    if options.uds is not None:
        return listen_at(options.uds), Access(keys=keys, admin_keys=admin_keys, origins=options.cors_origin)
    family, address = resolve(options.host, options.port)
    access = access_for(address[0], keys, options.cors_origin, no_auth=options.no_auth)
    return listen(family, address), replace(access, admin_keys=admin_keys)


async def _serve(
    options: Options,
    access: "Access",
    listening: "socket",
    found: Sequence[Place],
    memory: int | None,
    loras: Mapping[str, Path],
    ready: "Callable[[LLM], None]",
) -> int:
    """loras: adapters of the first model."""
    from stretto.serve.app import make_app
    from stretto.serve.lifecycle import Lifecycle, Server
    from stretto.serve.models import Models
    from stretto.serve.service import Config, Service
    from stretto.serve.slot import Limits, Slot

    def slot(place: Place, loras: Mapping[str, Path]) -> Slot:
        config = Config(
            names=place.names,
            loras=tuple(loras),
            strict=options.strict,
            reasoning=options.reasoning_format == "auto",
            prefix=options.metrics_prefix,
            lora_dir=options.lora_dir,
            prefix_dir=options.prefix_dir,
            stuck_seconds=options.stuck_seconds,
            exit_when_stuck=options.exit_when_stuck,
        )
        stays = len(found) == 1 and options.idle_unload is None
        return Slot(Service(config), partial(_load, place, loras, stays=stays), need=place.need, place=str(place.path))

    limits = Limits(
        memory=memory,
        most=options.models_max,
        idle=options.idle_unload,
        max_waiting=options.max_waiting,
        max_queued_tokens=options.max_queued_tokens,
    )
    models = Models([slot(found[0], loras), *(slot(place, {}) for place in found[1:])], limits)
    server = Server(make_app(models, access), max_connections=options.max_connections)
    lifecycle = Lifecycle(models, server, listening, drain_timeout=options.drain_timeout)
    return await lifecycle.run(partial(models.start, ready))
