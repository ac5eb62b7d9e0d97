"""What the devices of a compiled program say to one another, read from the program's text.

    collective   all-gather, all-reduce, reduce-scatter, all-to-all, collective-permute, send
    group        the devices that take part in it, by their numbers on the mesh

Four things are not as they look. The body of a loop stands once, and runs as often as its condition
says. A gather that overlaps with computing is a chain of fusions that all repeat it, in one kind of
group under one name and `channel_id`; those between the first and the last may be in a loop, which
it goes on beside. Elsewhere that number says nothing: all that is written out in a `jax.shard_map`
has the same. An all-reduce of which each device keeps its part, in a fusion
called `all-reduce-scatter`, is a reduce-scatter. Between slices, arrays are sent and received.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "send",
)
BETWEEN_SLICES = "slices"

_BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4,
    "s64": 8, "u64": 8, "f16": 2, "bf16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16,
}  # fmt: skip
_HEAD = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = ")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(calls|body|condition|to_apply|branch_computations|called_computations)="
    r"(%[\w.\-]+|\{[^}]*\})"
)


@dataclass(frozen=True)
class Collective:
    """One kind of exchange within one kind of group, over a whole step.

    Attributes:
        kind: One of `KINDS`.
        axes: The mesh axes that a group spans, joined by "+"; `BETWEEN_SLICES` for what is sent
            from slice to slice.
        group: Devices of a group.
        array_bytes: Bytes of the arrays on one device, as they are gathered, reduced or sent.
        count: How often it runs.
    """

    kind: str
    axes: str
    group: int
    array_bytes: int
    count: int = 1

    @property
    def wire_bytes(self) -> float:
        """Bytes that a device sends at least: a share of (n - 1) / n of the array, once or twice.

        The counts are those of rings (Patarasuk and Yuan, 2009), which no algorithm undercuts.
        """
        if self.kind in ("collective-permute", "send"):
            return float(self.array_bytes)
        passes = 2 if self.kind == "all-reduce" else 1
        return passes * self.array_bytes * (self.group - 1) / self.group


@dataclass(frozen=True)
class _Instruction:
    """A line of a computation: its result's type, what it does and with what."""

    type: str
    opcode: str
    rest: str

    def called(self, key: str) -> str:
        found = dict(_CALLED.findall(self.rest)).get(key, "")
        return found.removeprefix("%")

    @property
    def callees(self) -> Iterator[tuple[str, str]]:
        for key, names in _CALLED.findall(self.rest):
            for name in re.findall(r"%([\w.\-]+)", names):
                yield key, name

    @property
    def fused(self) -> Iterator[str]:
        return (name for _, name in self.callees if self.opcode == "fusion")


def collectives(text: str, mesh: Mapping[str, int]) -> tuple[Collective, ...]:
    """Adds up the collectives of a compiled program.

    Args:
        text: The program after compilation, as `compiled.as_text()` gives it.
        mesh: Sizes of the mesh axes in their order.

    Returns:
        One for every kind and group, the largest first; what one device does in a whole step.

    Raises:
        ValueError: if a loop with collectives in it has no readable number of turns.
    """
    program, entry = _computations(text)
    turns = _turns(program, entry)
    fused = {name for lines in program.values() for line in lines for name in line.fused}
    found: dict[tuple[str, ...], Collective] = {}
    for name, instructions in program.items():
        for number, instruction in enumerate(instructions):
            one = _collective(name, instruction, mesh)
            if one is None or not turns[name]:
                continue
            one = replace(one, count=turns[name], array_bytes=one.array_bytes * turns[name])
            key: tuple[str, ...] = (name, str(number))
            if name in fused:
                named = re.findall(r'channel_id=\d+|op_name="[^"]*"', instruction.rest)
                key = (one.kind, one.axes, str(one.group), *named) if named else key
            if key not in found or _is_nearer(one, found[key]):
                found[key] = one
    sums: dict[tuple[str, str, int], Collective] = {}
    for one in found.values():
        kind = (one.kind, one.axes, one.group)
        before = sums.get(kind, replace(one, array_bytes=0, count=0))
        sums[kind] = replace(
            one,
            array_bytes=before.array_bytes + one.array_bytes,
            count=before.count + one.count,
        )
    return tuple(sorted(sums.values(), key=lambda one: -one.wire_bytes))


def _is_nearer(one: Collective, other: Collective) -> bool:
    """Whether a link of a chain is nearer to its ends: in fewer loops, then with larger arrays."""
    return (one.count, -one.array_bytes) < (other.count, -other.array_bytes)


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """The computations of a program by name, and the name of the first."""
    program: dict[str, list[_Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = program.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            current.append(_instruction(line[found.end() :]))
    return program, entry


def _instruction(text: str) -> _Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    opcode, _, rest = text[end:].strip().partition("(")
    return _Instruction(text[:end], opcode, rest)


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return place
    raise ValueError(f"unbalanced brackets in {text[:80]!r}")


def _turns(program: Mapping[str, list[_Instruction]], entry: str) -> Counter[str]:
    """How often each computation runs in a step."""
    turns: Counter[str] = Counter()

    def visit(name: str, times: int) -> None:
        turns[name] += times
        for instruction in program.get(name, ()):
            for key, callee in instruction.callees:
                if key in ("condition", "to_apply"):
                    continue
                is_loop = instruction.opcode == "while" and key == "body"
                visit(callee, times * _trip_count(program, instruction) if is_loop else times)

    visit(entry, 1)
    return turns


def _trip_count(program: Mapping[str, list[_Instruction]], loop: _Instruction) -> int:
    """The turns of a loop, which XLA notes or the condition compares with."""
    if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest):
        return int(noted[1])
    condition = list(program.get(loop.called("condition"), ()))
    for instruction in list(condition):
        for _, callee in instruction.callees:
            condition += program.get(callee, ())
    limits = [
        int(one.rest.partition(")")[0])
        for one in condition
        if one.opcode == "constant" and re.match(r"[su]\d+\[\]", one.type)
    ]
    if len(limits) == 1 and any("direction=LT" in one.rest for one in condition):
        return limits[0]
    if any(True for _ in _inside(program, loop.called("body"))):
        raise ValueError("a loop has collectives in it and no readable number of turns")
    return 1


def _inside(program: Mapping[str, list[_Instruction]], name: str) -> Iterator[_Instruction]:
    """The collectives of a computation and of those that it calls."""
    for instruction in program.get(name, ()):
        if instruction.opcode.removesuffix("-start") in KINDS:
            yield instruction
        for _, callee in instruction.callees:
            yield from _inside(program, callee)


def _collective(
    computation: str, instruction: _Instruction, mesh: Mapping[str, int]
) -> Collective | None:
    kind = instruction.opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    result = instruction.type
    if kind == "send":
        if "megascale" not in instruction.rest:
            return None
        return Collective(kind, BETWEEN_SLICES, 2, _size(_elements(result)[0]))
    if instruction.opcode.endswith("-start") and kind != "all-reduce":
        result = _elements(result)[1]  # (operands, results, ...)
    size = _size(result)
    if kind == "collective-permute":
        pairs = re.search(r"source_target_pairs=(\{.*?\}\})", instruction.rest)
        moves = np.array(_numbers(pairs[1] if pairs else "")).reshape(-1, 2)
        return Collective(kind, _axes(moves, mesh), 2, size)
    groups = _groups(instruction.rest, mesh)
    width = groups.shape[1]
    if kind == "reduce-scatter":
        size *= width
    if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"
    return Collective(kind, _axes(groups, mesh), width, size)


def _elements(type_text: str) -> list[str]:
    """The types in a tuple type."""
    inner, parts, depth = type_text[1:-1], [""], 0
    for letter in inner:
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(letter, 0)
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _size(type_text: str) -> int:
    """Bytes of all arrays in a type, without the padding of tiles."""
    sizes = (
        _BYTES.get(dtype, 1) * math.prod(_numbers(shape))
        for dtype, shape in _ARRAY.findall(type_text)
    )
    return math.ceil(sum(sizes))


def _numbers(text: str) -> list[int]:
    return [int(one) for one in re.findall(r"\d+", text)]


def _groups(rest: str, mesh: Mapping[str, int]) -> np.ndarray:
    """The groups of a collective, one in each row, in any of the forms that XLA writes."""
    count = math.prod(mesh.values())
    if listed := re.search(r"replica_groups=\{(\{.*?\})\}", rest):
        return np.array([_numbers(one) for one in re.findall(r"\{([\d,]+)\}", listed[1])])
    if counted := re.search(r"replica_groups=(\[[\d,]+\])<=(\[[\d,]+\](?:T\([\d,]+\))?)", rest):
        return _counted(counted[2]).reshape(_numbers(counted[1]))
    named = re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?\)?)\))? \{(.*?)\}", rest)
    if named is None:
        return np.arange(count)[None]
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
    devices = _counted(named[2]) if named[2] else np.arange(count)
    return _along(devices, sizes, named[3])


def _along(devices: np.ndarray, sizes: dict[str, int], wanted: str) -> np.ndarray:
    """Groups along named axes, of which parts can be named: `'a':(2)4` is 4 behind the first 2."""
    shape: list[int] = []
    moved: list[int] = []
    parts = {name: (part, size) for name, part, size in re.findall(
        r"'([^']+)'(?::\((\d+)\)(\d+))?", wanted
    )}  # fmt: skip
    for name, size in sizes.items():
        if name in parts and parts[name][0]:
            before, middle = int(parts[name][0]), int(parts[name][1])
            moved.append(len(shape) + 1)
            shape += [before, middle, size // before // middle]
        else:
            moved += [len(shape)] if name in parts else []
            shape.append(size)
    kept = [axis for axis in range(len(shape)) if axis not in moved]
    width = math.prod(shape[axis] for axis in moved)
    return devices.reshape(shape).transpose(*kept, *moved).reshape(-1, width)


def _counted(text: str) -> np.ndarray:
    """The numbers of `[4,2]T(1,0)`: counted up in that shape, then transposed; or listed ones."""
    if not text.startswith("["):
        return np.array(_numbers(text))
    shape, _, order = text.partition("T")
    sizes = _numbers(shape)
    return np.arange(math.prod(sizes)).reshape(sizes).transpose(_numbers(order) or None).ravel()


def _axes(groups: np.ndarray, mesh: Mapping[str, int]) -> str:
    """The mesh axes along which the devices of a group differ."""
    coordinates = np.unravel_index(groups, tuple(mesh.values()))
    spanned = [
        name for name, along in zip(mesh, coordinates, strict=True) if (along != along[:, :1]).any()
    ]
    return "+".join(spanned) or "none"
