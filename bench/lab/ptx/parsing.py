"""Parses the text of a kernel, as Triton writes it, into a list of instructions with labels."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

from .errors import Unsupported

PARAMETER = re.compile(r"\.param\s+\.(\w+)[^,\n]*?\s([\w$]+)(\[\d+\])?\s*(?:,|$)", re.M)
LABEL = re.compile(r"[\w$]+:(?!:)")
WORD = re.compile(r"[%\w$]+")
OPERAND = re.compile(r"(?:\{[^}]*\}|\[[^]]*\]|[^,{\[])+")


@dataclass(slots=True)
class Instruction:
    """One instruction: `@predicate opcode operands`, the opcode split at its dots."""

    opcode: str
    operands: list[str]
    predicate: str | None = None
    negated: bool = False
    line: str = ""  # line of the kernel's source, where the PTX has it
    parts: tuple[str, ...] = field(init=False)
    base: str = field(init=False)  # first part of the opcode
    type: str = field(init=False)  # last part of the opcode

    def __post_init__(self):
        self.parts = parts_of(self.opcode)
        self.base, self.type = self.parts[0], self.parts[-1]

    @property
    def flushes(self) -> bool:
        """Whether the instruction takes subnormal float32 numbers for zeros."""
        return "ftz" in self.parts

    def __str__(self):
        when = f"@{'!' * self.negated}{self.predicate} " if self.predicate else ""
        where = f" ({self.line})" if self.line else ""
        return f"{when}{self.opcode} {', '.join(self.operands)}{where}"


@cache
def parts_of(opcode: str) -> tuple[str, ...]:
    """The parts of an opcode between its dots."""
    return tuple(opcode.split("."))


@dataclass
class Kernel:
    """A parsed kernel. Labels are positions of instructions; `tables` has the targets of indexed branches."""

    name: str
    threads: int
    params: list[tuple[str, str]]  # (name, type)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    tables: dict[str, list[str]] = field(default_factory=dict)
    registers: dict[str, str] = field(default_factory=dict)  # type by the name without its number


def parse(ptx: str) -> Kernel:
    """Parses the first kernel of a PTX module."""
    entry = re.search(r"\.entry\s+([\w$]+)\s*\(", ptx)
    if entry is None:
        raise Unsupported(
            "PTX with a kernel (.entry) was expected, there is none; give Triton's `asm['ptx']`"
        )
    name, close = entry.group(1), ptx.index(")\n", entry.end())
    start = ptx.index("{\n", close)
    threads = re.search(r"\.reqntid\s+(\d+)", ptx[close:start])
    if threads is None:
        raise Unsupported(
            f"{name}: .reqntid was expected behind the parameters and is missing: Triton writes it"
        )
    end = ptx.rfind("\n}")
    kernel = Kernel(name, int(threads.group(1)), list(parameters(name, ptx[entry.end() : close + 1])))
    read_body(kernel, ptx[start + 2 : end if end > start else len(ptx)])
    return kernel


def parameters(kernel: str, text: str) -> Iterator[tuple[str, str]]:
    """Yields (name, type) of each parameter."""
    for ty, name, array in PARAMETER.findall(text):
        if array:
            raise Unsupported(
                f"{kernel}: parameter {name} is an array of bytes; numbers and pointers are executed"
            )
        yield name, ty


def read_body(kernel: Kernel, text: str) -> None:
    """Reads the instructions, labels, tables and declarations of a body into the kernel."""
    line, label, scopes, names = "", "", 0, {}
    for statement in statements(text):
        first = statement[0]
        if first == "." and statement.startswith(".loc"):
            line = statement.partition("//")[2].strip().partition(" ")[0]
        elif first == ".":
            names |= directive(kernel, statement, label, scopes if "{" in names else 0)
        elif statement[-1] == ":":
            label = statement[:-1]
            kernel.labels[label] = len(kernel.instructions)
        elif first == "{":
            scopes, names = scopes + 1, {"{": "{"}
        elif first == "}":
            names = {}
        else:
            if names:
                statement = renamed(statement, names)
            kernel.instructions.append(instruction(kernel.name, statement, line))


def statements(text: str) -> Iterator[str]:
    """Yields instructions and directives without semicolon, labels with colon, braces, lines of .loc."""
    begun = ""
    for line in text.split("\n"):
        line = line.strip()
        if line.startswith(".loc"):
            yield line
            continue
        if "//" in line:
            line = line[: line.index("//")].rstrip()
        if not line:
            continue
        if (
            not begun
            and line[0] not in "{}"
            and (line[-1] == ":" or (line.find(";") == len(line) - 1 and ":" not in line))
        ):
            yield line.rstrip(";")
            continue
        begun = f"{begun} {line}".strip()
        while begun:
            label = LABEL.match(begun)
            if begun[0] in "{}":
                end = 1
            elif label:
                end = label.end()
            elif ";" in begun:
                end = begun.index(";") + 1
            else:
                break
            yield begun[:end].rstrip(";")
            begun = begun[end:].strip()


def directive(kernel: Kernel, text: str, label: str, scope: int) -> dict[str, str]:
    """Reads a directive's declaration into the kernel; returns new names for registers within braces."""
    what, _, rest = text.partition(" ")
    if what == ".branchtargets":
        kernel.tables[label] = [target.strip() for target in rest.split(",")]
    if what != ".reg":
        return {}
    ty, *names = rest.replace(",", " ").split()
    inner = {name: f"%scope{scope}.{name}" for name in names if scope}
    for name in names:
        kernel.registers[inner.get(name, name.partition("<")[0])] = ty[1:]
    return inner


def renamed(text: str, names: dict[str, str]) -> str:
    """The statement with other names of registers."""
    return WORD.sub(lambda word: names.get(word[0], word[0]), text)


def instruction(kernel: str, text: str, line: str) -> Instruction:
    """Parses one instruction."""
    predicate, negated, rest = None, False, text
    if text[0] == "@":
        predicate, rest = text[1:].split(None, 1)
        negated = predicate[0] == "!"
        predicate = predicate.lstrip("!")
    opcode, *operands = rest.split(None, 1)
    if not opcode[0].islower():
        raise Unsupported(f"{kernel}: an instruction was expected, {text[:80]!r} came")
    return Instruction(opcode, cut(operands[0]) if operands else [], predicate, negated, line)


def cut(text: str) -> list[str]:
    """The operands, split at commas outside braces and brackets."""
    if "{" not in text:
        return [operand.strip() for operand in text.split(",")]
    return [operand.strip() for operand in OPERAND.findall(text)]
