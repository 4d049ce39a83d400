"""Systems as servers: the command that starts each one, and a process that answers on a port of this machine.

Every one has its prefix cache on, as many threads as cores, and room for 32 requests and 48k tokens. Clients ask
`/v1/completions`. OpenVINO GenAI has no server for one model in its package: `openvino_server.py` puts a loop over its
continuous batching pipeline behind that route.
"""

import http.client
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers.client import Keeper, Process, WorkerError
from peers.install import SetupError
from peers.systems import Peer

HERE = Path(__file__).parent
STREAMS, TOKENS, CONTEXT = 32, 49_152, 4096
PACED = ("--chunk", "paced:tbt=0.05")


@dataclass(frozen=True, kw_only=True, slots=True)
class System:
    """A server that is compared. file: what it reads (`install.py: model_file`). health: a route that answers 200 when
    the model is there. command: of the model, the port and the number of threads."""

    name: str
    file: str
    health: str
    command: Callable[[Path, int, int], Sequence[str]]
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        return self.name.startswith("stretto")


def stretto(name: str = "stretto", *words: str, file: str = "gguf") -> System:
    """Ours, with flags."""

    def command(model: Path, port: int, threads: int) -> list[str]:
        sizes = ["--ctx", str(CONTEXT), "--max-seqs", str(STREAMS), "--threads", str(threads), "--port", str(port)]
        return [sys.executable, "-m", "stretto", "serve", str(model), *sizes, *words]

    return System(name=name, file=file, health="/ready", command=command)


def others(found: Mapping[str, Peer], interpreter: Callable[[Peer], Path]) -> dict[str, Callable[[], System]]:
    """By name, how each of the peers is made; a call raises SetupError with why it cannot be."""

    def llama_cpp() -> System:
        server = interpreter(found["llama.cpp"]).parent / "llama-server"
        if not server.exists():
            raise SetupError("its server is not built: python bench/serve_load.py --setup")
        words = ["--parallel", str(STREAMS), "--ctx-size", str(TOKENS), "--kv-unified", "--cont-batching", "--no-webui"]

        def command(model: Path, port: int, threads: int) -> list[str]:
            team = ["--threads", str(threads), "--threads-batch", str(threads)]
            return [str(server), "-m", str(model), "--port", str(port), *team, *words]

        # of its formats the fastest in bench/records/cpu_peers-*.json
        return System(name="llama.cpp", file="Q4_0", health="/health", command=command)

    def vllm() -> System:
        python = str(interpreter(found["vllm"]))
        words = [
            "--dtype",
            "bfloat16",
            "--max-model-len",
            str(CONTEXT),
            "--max-num-seqs",
            str(STREAMS),
            "--enable-prefix-caching",
            "--kv-cache-memory-bytes",
            str(TOKENS * 23_040),
        ]

        def command(model: Path, port: int, threads: int) -> list[str]:
            server = [python, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1"]
            return [*server, "--port", str(port), "--model", str(model), *words]

        variables = {**found["vllm"].variants[0].variables, "VLLM_CPU_OMP_THREADS_BIND": "all"}
        variables.pop("VLLM_ENABLE_V1_MULTIPROCESSING")
        return System(name="vllm", file="hf", health="/health", command=command, variables=variables)

    def openvino() -> System:
        python = str(interpreter(found["openvino"]))

        def command(model: Path, port: int, threads: int) -> list[str]:
            return [python, str(HERE / "openvino_server.py"), str(model), *map(str, (port, threads, STREAMS, TOKENS))]

        return System(name="openvino", file="gguf", health="/health", command=command)

    return {"llama.cpp": llama_cpp, "vllm": vllm, "openvino": openvino}


class Server(Process):
    """A server that has started: its port and the seconds until it was ready."""

    def __init__(self, system: System, model: Path, threads: int, keeper: Keeper, limit_s: float = 300.0) -> None:
        self.system, self.port = system, free_port()
        variables = {"OMP_NUM_THREADS": str(threads), **system.variables}
        super().__init__(system.command(model, self.port, threads), variables, system.name, keeper)
        try:
            self.ready_s = self._until_ready(limit_s)
        except BaseException:
            self.close(gently=False)
            raise

    def maps(self, part: str) -> bool:
        """Whether a file with this in its name is mapped into a process of it."""
        for folder in self._processes():
            with suppress(OSError):
                if part in (folder / "maps").read_text():
                    return True
        return False

    def _until_ready(self, limit_s: float) -> float:
        while (passed := time.perf_counter() - self.started) < limit_s:
            if self._process.poll() is not None:
                raise WorkerError(self._ended())
            if status(self.port, self.system.health) == 200:
                return time.perf_counter() - self.started
            time.sleep(0.005)
        raise WorkerError(f"not ready after {passed:.0f} s")


def status(port: int, path: str) -> int:
    """Of a GET; 0 if nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def free_port() -> int:
    """One that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        port: int = one.getsockname()[1]
    return port


def settings_of(system: System) -> dict[str, Any]:
    """What a reader needs to start it the same way, without the places of this machine."""
    words = system.command(Path("MODEL"), 0, 0)
    return {"command": " ".join(Path(word).name if "/" in word else word for word in words), "file": system.file}
