"""`Program`: a list of operations at rest. It holds no address, needs no torch, and can be kept in a file.

An argument struct is its bytes, with zeros where pointers are; what each of those points to is named by a buffer and an
offset. A buffer is one of three things:

    Scratch     memory that begins as zeros: rows of a step, partial results
    Constant    numbers that every run reads
    Given       memory of somebody else, by its name: a weight, one layer of a pool

`load` writes the addresses that buffers have in this process into fresh structs. Pointers that a caller fills before a
run (of the step, and of what lies between two runs) are null in a program.
"""

import ctypes
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from stretto.kernels.native.library import Library, Team
from stretto.kernels.native.memory import Memory
from stretto.kernels.native.operations import Call, Host, Operations

POINTER_BYTES = ctypes.sizeof(ctypes.c_void_p)
ALIGN = 64  # cache lines


class ProgramError(Exception):
    """A program that cannot be run as it is: damaged, or made for other kernels."""


@dataclass(frozen=True, slots=True)
class Scratch:
    nbytes: int


@dataclass(frozen=True, slots=True)
class Constant:
    """data: its bytes; `bytes`, or a view of a mapped file."""

    data: "bytes | memoryview"

    @property
    def nbytes(self) -> int:
        return len(self.data)


@dataclass(frozen=True, slots=True)
class Given:
    """name: what whoever loads the program finds it by. nbytes: how much of it there is at least."""

    name: str
    nbytes: int


Buffer = Scratch | Constant | Given


@dataclass(frozen=True, slots=True)
class Place:
    """A byte of a buffer."""

    buffer: int
    offset: int


@dataclass(frozen=True, slots=True)
class Entry:
    """An operation. args: the bytes of its struct, None for one of the host; pointers: (byte of the struct, what it
    points to)."""

    name: str
    args: bytes | None
    pointers: tuple[tuple[int, Place], ...] = ()
    why: str = ""


@dataclass(frozen=True, slots=True)
class Program:
    """calls, commits, between: as in `Operations`. outputs: what a caller reads after a run, by name."""

    buffers: tuple[Buffer, ...]
    calls: tuple[Entry, ...]
    commits: tuple[Entry, ...] = ()
    between: tuple[Entry, ...] = ()
    outputs: Mapping[str, Place] = field(default_factory=dict)

    @property
    def host_operations(self) -> dict[str, str]:
        """The parts that Python computes, and why."""
        return {entry.name: entry.why for entry in self.calls if entry.args is None}

    def check(self, library: Library) -> None:
        """Raises ProgramError unless every operation exists, has the size of its struct, points into its buffers from
        where its struct has pointers, and leaves no other pointer but null."""
        for entry in (*self.calls, *self.commits, *self.between):
            if entry.args is None:
                continue
            struct = library.find_struct(entry.name)
            if struct is None or ctypes.sizeof(struct) != len(entry.args):
                raise ProgramError(f"operation {entry.name} is not one of these kernels")
            expected, given = set(pointer_fields(struct)), {at for at, _ in entry.pointers}
            if not given <= expected or any(any(entry.args[at : at + POINTER_BYTES]) for at in expected):
                raise ProgramError(f"operation {entry.name} has pointers where its struct has none")
        for place in self.places():
            if not 0 <= place.buffer < len(self.buffers) or not 0 <= place.offset < self.buffers[place.buffer].nbytes:
                raise ProgramError("an operation points beyond its buffers")

    def places(self) -> Iterator[Place]:
        """All that anything points to."""
        for entry in (*self.calls, *self.commits, *self.between):
            for _, place in entry.pointers:
                yield place
        yield from self.outputs.values()


@cache
def pointer_fields(struct: type[ctypes.Structure]) -> tuple[int, ...]:
    """Where in a struct pointers lie, also in structs and arrays inside it."""
    return tuple(_pointers_in(struct, 0))


def _pointers_in(kind: Any, at: int) -> Iterator[int]:
    if kind is ctypes.c_void_p:
        yield at
    elif issubclass(kind, ctypes.Structure):
        for name, inner, *_ in kind._fields_:
            yield from _pointers_in(inner, at + getattr(kind, name).offset)
    elif issubclass(kind, ctypes.Array):
        for i in range(kind._length_):
            yield from _pointers_in(kind._type_, at + i * ctypes.sizeof(kind._type_))


class Regions:
    """The memory that operations may point to, by address: what is added is a buffer of the program."""

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []
        self.addresses: list[int] = []
        self._order: list[tuple[int, int]] = []  # (address, buffer), sorted

    def add(self, address: int, buffer: Buffer) -> None:
        """Memory [address, address + buffer.nbytes), which nothing else holds."""
        self.buffers.append(buffer)
        self.addresses.append(address)
        self._order.append((address, len(self.buffers) - 1))
        self._order.sort()

    def find(self, address: int) -> Place | None:
        """Whose memory this is."""
        at = bisect_right(self._order, (address, len(self.buffers))) - 1
        if at < 0:
            return None
        start, buffer = self._order[at]
        return Place(buffer, address - start) if address - start < self.buffers[buffer].nbytes else None

    def entry(self, call: Call) -> Entry:
        """A call without its addresses. Its pointers must lie in this memory: one that does not is a defect of whoever
        recorded it."""
        if call.args is None:
            return Entry(call.name, None, why=call.why)
        raw, pointers = bytearray(call.args), []
        for at in pointer_fields(type(call.args)):
            address = int.from_bytes(raw[at : at + POINTER_BYTES], "little")
            if address:
                place = self.find(address)
                assert place is not None, f"operation {call.name} points (at byte {at}) to what no buffer holds"
                pointers.append((at, place))
                raw[at : at + POINTER_BYTES] = bytes(POINTER_BYTES)
        return Entry(call.name, bytes(raw), tuple(pointers))

    def program(self, operations: Operations, outputs: Mapping[str, int]) -> Program:
        """These operations at rest. outputs: addresses by name."""
        found = {name: self.find(address) for name, address in outputs.items()}
        assert all(found.values()), "outputs lie in buffers"
        calls, commits, between = (
            tuple(map(self.entry, part)) for part in (operations.calls, operations.commits, operations.between)
        )
        places = {name: place for name, place in found.items() if place is not None}
        return Program(tuple(self.buffers), calls, commits, between, places)


def load(program: Program, team: Team, addresses: Sequence[int], hosts: Sequence[Host] = ()) -> Operations:
    """The operations of a program whose buffers lie at `addresses`. hosts: those of the host, in order."""
    operations, left = Operations(team), iter(hosts)

    def call(entry: Entry) -> Call:
        if entry.args is None:
            return Call(entry.name, host=next(left), why=entry.why)
        args = team.library.struct(entry.name).from_buffer_copy(entry.args)
        start = ctypes.addressof(args)
        for at, place in entry.pointers:
            ctypes.c_void_p.from_address(start + at).value = addresses[place.buffer] + place.offset
        return Call(entry.name, args)

    operations.calls = [call(entry) for entry in program.calls]
    operations.commits = [call(entry) for entry in program.commits]
    operations.between = [call(entry) for entry in program.between]
    return operations


def place_buffers(program: Program, given: Callable[[str], int]) -> tuple[list[int], list[object]]:
    """Memory for every buffer of a program: their addresses, and what keeps it alive. given: the address of a name."""
    addresses: list[int] = []
    constants = Memory(sum(_aligned(b.nbytes) for b in program.buffers if isinstance(b, Constant)))
    held: list[object] = [constants]
    written = 0
    for buffer in program.buffers:
        if isinstance(buffer, Given):
            addresses.append(given(buffer.name))
        elif isinstance(buffer, Constant):
            constants.write(buffer.data, written)
            addresses.append(constants.address + written)
            written += _aligned(buffer.nbytes)
        else:
            memory = Memory(buffer.nbytes)
            held.append(memory)
            addresses.append(memory.address)
    return addresses, held


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGN) * ALIGN


def addresses_of(program: Program, addresses: Iterable[int]) -> dict[str, int]:
    """Where the outputs of a program are."""
    listed = list(addresses)
    return {name: listed[place.buffer] + place.offset for name, place in program.outputs.items()}
