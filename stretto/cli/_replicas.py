"""`stretto serve --replicas N`: the front process, and how it starts the servers behind it."""

import os
import secrets
import sys
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stretto.cli._models import bytes_of
from stretto.cli._terminal import note, print_json
from stretto.core.card import ROUTES
from stretto.core.env import process_variables
from stretto.core.errors import UserError
from stretto.core.memory import available_memory
from stretto.core.option import options_of
from stretto.core.settings import Configuration, Settings
from stretto.core.spec import read_spec

if TYPE_CHECKING:
    from socket import socket

    from stretto.cli.serve import Options
    from stretto.serve.app import Access

_SHARE = 0.9  # of the memory that is there, for all replicas together


def check_replicas(options: "Options") -> None:
    """Raises UserError for what only one process, with one engine or several, can do."""
    one_engine, one_model = "it changes one engine, and each replica has its own", "replicas serve one model each"
    flags: list[tuple[str, object, str]] = [
        ("several models", options.more, f"{one_model}, which is loaded as long as they live"),
        ("--models-memory", options.models_memory, one_model),
        ("--models-max", options.models_max, one_model),
        ("--idle-unload", options.idle_unload, "a replica without its model serves nobody"),
        ("--lora-dir", options.lora_dir, one_engine),
        ("--prefix-dir", options.prefix_dir, one_engine),
    ]
    for flag, given, why in flags:
        if given:
            try_ = "one process, or adapters by --lora" if flag == "--lora-dir" else "one process"
            raise UserError(f"{flag} with --replicas {options.replicas}", why=why, try_=try_)


async def serve_replicas(options: "Options", path: Path, access: "Access", listening: "socket", url: str) -> int:
    """Serve until a signal says not to, and return its number. path: of the model."""
    from stretto.serve.app import guarded
    from stretto.serve.lifecycle import Lifecycle, Server
    from stretto.serve.router.front import Front
    from stretto.serve.router.pool import Pool
    from stretto.serve.router.replica import Launch

    key = secrets.token_urlsafe(32)
    words = command(options, path)
    launch = Launch(lambda socket: [*words, "--uds", str(socket)], environ(key), key)
    pool = Pool(launch, options.replicas, read_spec(options.route, ROUTES, "--route").make())
    front = Front(pool, prefix=options.metrics_prefix)

    async def start(beside: ExitStack) -> None:
        await pool.start()
        facts = facts_of([one.facts for one in pool.replicas], url)
        note(f"ready: {facts['model']} at {url}, {options.replicas} replicas, route {options.route}")
        if options.json:
            print_json(facts)

    server = Server(guarded(front, access, front.rejected), max_connections=options.max_connections)
    lifecycle = Lifecycle(front, server, listening, drain_timeout=options.drain_timeout)
    return await lifecycle.run(start)


def command(options: "Options", path: Path) -> list[str]:
    """The command of a replica, but for its socket. It holds no key: other users can read it.

    A replica drains for no time: the front process does, and when it is done, what is left is cut off.
    """
    from stretto.cli.serve import names_of

    words = [sys.executable, "-m", "stretto", "serve", str(path), "--json", "--drain-timeout", "0"]
    for name in names_of(options)[0]:
        words += ["--served-model-name", name]
    words += ["--reasoning-format", options.reasoning_format, "--max-waiting", str(options.max_waiting)]
    words += ["--max-connections", str(1 << 16), "--metrics-prefix", options.metrics_prefix]
    words += ["--strict"] if options.strict else []
    words += ["--stuck-seconds", str(options.stuck_seconds)] + (
        ["--exit-when-stuck"] if options.exit_when_stuck else []
    )
    if options.max_queued_tokens is not None:
        words += ["--max-queued-tokens", str(options.max_queued_tokens)]
    for adapter in options.lora:
        words += ["--lora", adapter]
    return words + settings_of(options.configuration, options.replicas, path)


def settings_of(configuration: Configuration, replicas: int, path: Path) -> list[str]:
    """Flags for the settings that were given, as given; cores and memory are divided where nothing was said."""
    settings, words = configuration.settings, list[str]()
    for one in options_of(Settings):
        if one.field in configuration.sources:
            words += [one.name, one.text_of(getattr(settings, one.field))]
    if settings.threads is None:
        words += ["--threads", str(max(1, len(os.sched_getaffinity(0)) // replicas))]
    if settings.memory is None:
        # Of each replica's share, the weights and about as much as their file take no part in the cache.
        share = int(_SHARE * available_memory() / replicas)
        words += ["--mem", str(max(1 << 20, share - 2 * bytes_of(path)))]
    return words


def environ(key: str) -> Mapping[str, str]:
    """The variables of a replica: those of this process, but for its keys, and the key that opens the replica."""
    from stretto.cli.serve import ADMIN_VARIABLE, FRONT_VARIABLE, KEY_VARIABLE

    kept = {name: value for name, value in process_variables().items() if name not in (KEY_VARIABLE, ADMIN_VARIABLE)}
    return kept | {FRONT_VARIABLE: key}


def facts_of(replicas: list[dict[str, Any]], url: str) -> dict[str, Any]:
    """What `--json` prints: as for one server, with the cache of all, and what each replica said."""
    first = replicas[0]
    sums = {name: sum(one[name] for one in replicas) for name in ("kv_tokens", "state_slots")}
    return {**first, **sums, "url": url, "pid": os.getpid(), "replicas": replicas}


def end_with_front() -> None:
    """End this process when standard input is closed: the front process holds the other end, and ends however it
    ends, by a kill, too."""

    def watch() -> None:
        while os.read(0, 1 << 10):
            pass
        os._exit(1)

    threading.Thread(target=watch, name="stretto-front", daemon=True).start()
