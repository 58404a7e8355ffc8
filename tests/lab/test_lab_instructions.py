"""Each instruction of one thread in the emulator, against rational numbers and Python's integers."""

import itertools
import re
import zlib

import kernel_opcodes
import numpy as np
import pytest
import torch
from exact_numbers import FORMATS, bits_of, flushed, infinity, is_float, numbers, once_rounded, width
from instruction_cases import CASES, Case
from small_kernels import aligned, machine, opcodes, written
from warp_kernels import KERNELS

from bench.lab.ptx.values import float8_bits

ROWS = 512  # of operands
REGISTERS = {1: "%p", 8: "%rs", 16: "%rs", 32: "%r", 64: "%rd"}


def storage(kind):
    return np.dtype(f"u{max(1, width(kind.removesuffix('x2')) // 8 * (1 + kind.endswith('x2')))}")


def special(kind):
    """Bits of a type at the ends of its ranges, or whose results lie halfway between two numbers."""
    if kind == "pred":
        return [0, 1]
    if kind == "n32":  # amounts to shift by
        return [0, 1, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 1 << 31, (1 << 32) - 1]
    bits = width(kind)
    if not is_float(kind):
        top = 1 << (bits - 1)
        ends = (top - 1, top, top + 1, 2 * top - 1, 2 * top - 2)
        return [0, 1, 2, 3, 7, 10, *ends, 0x5A5A5A5A5A5A5A5A % (2 * top)]
    digits = FORMATS[kind][0]
    infinite, smallest, step = infinity(kind), 1 << (digits - 1), 2.0 ** (1 - digits)
    half = step / 2
    values = [1, 0.5, 1.5, 2.5, 126.5, 140, 1 + step, 1 - half, half, half * (1 + step), half * (1 - step)]
    ends = [0, 1, smallest - 1, smallest, smallest + 1]
    ends += [infinite - 1, infinite, infinite + 1, infinite | smallest // 2]
    ends += [bits_of(value, kind) for value in values]
    return ends + [end | 1 << (bits - 1) for end in ends]


def near_ties(kind):
    """Rows of a, b, c with a b + c so near to halfway between two numbers that rounding twice would show."""
    digits, least, _ = FORMATS[kind]
    step, x = 2.0 ** (1 - digits), 2.0 ** (digits // 2)
    above = ((x + 1) / x, (x * x - x + 1) / (x * x))  # whose product is 1 + x**-3
    below = (1 + step, 1 - step)
    for (a, b), odd, sign, other in itertools.product((above, below), (0, 1, 2, 3), (1, -1), (1, -1)):
        yield [bits_of(value, kind) for value in (a * sign, b * other * step / 2, (1 + odd * step) * sign)]
    smallest = 2.0 ** max(least - digits + 1, -60)
    for odd, sign in itertools.product((1, 3, 5, 7), (1, -1)):  # a b is halfway, c all but nothing
        k = 2**digits // 3 // 8 * 8 + 8 + odd
        yield [bits_of(value, kind) for value in (192, k * 64 / 2**digits, sign * smallest)]


def operands(case):
    """An array of bits an operand."""
    rng = np.random.default_rng(zlib.crc32(str(case).encode()))
    kinds = [kind.removesuffix("x2") for kind in case.operands]
    rows = list(itertools.product(*map(special, kinds)))
    if len(rows) > ROWS // 2:
        rows = [rows[i] for i in rng.choice(len(rows), ROWS // 2, replace=False)]
    rows += itertools.product(*[(0, 1 << width(kind) - 1) for kind in kinds])  # zeros of both signs
    if len(kinds) == 3 and is_float(kinds[0]) and len(set(kinds)) == 1:
        rows += near_ties(kinds[0])
    columns = [random_bits(kind, rng, ROWS - len(rows)) for kind in kinds]
    halves = [np.array([*first, *rest.tolist()], rest.dtype) for first, rest in zip(zip(*rows), columns)]
    return [aligned(half).view(storage(kind)) for half, kind in zip(halves, case.operands)]


def random_bits(kind, rng, count):
    """Random values of a type: half of them any bits, the others floats of about the same size."""
    bits = rng.integers(0, 1 << 64, count, np.uint64)
    if kind in ("pred", "n32"):
        bits %= {"pred": 2, "n32": 70}[kind]
    bits = bits.astype(storage(kind))
    if kind == "bf16":
        bits[::2] = rng.normal(size=count).astype(np.float32).view(np.uint32)[::2] >> 16
    elif is_float(kind):
        bits[::2] = rng.normal(size=count).astype(f"f{bits.itemsize}").view(bits.dtype)[::2]
    return bits


def register(kind, i):
    return f"{REGISTERS[8 * storage(kind).itemsize if kind != 'pred' else 1]}{i}"


def loaded(kind, i):
    """Lines that load the operand of a thread."""
    bytes_, name = storage(kind).itemsize, register(kind, i)
    load = f"""ld.param.b64 %rd{10 + i}, [small_param_{i}];
        mad.wide.u32 %rd{20 + i}, %r90, {bytes_}, %rd{10 + i};"""
    if kind == "pred":
        return f"{load}\nld.global.b8 %rs{i}, [%rd{20 + i}];\nsetp.ne.b16 {name}, %rs{i}, 0;"
    return f"{load}\nld.global.b{8 * bytes_} {name}, [%rd{20 + i}];"


def stored(kind, i):
    if kind == "pred":
        return f"selp.b16 %rs{i}, 1, 0, %p{i};\nst.global.b8 [%rd{20 + i}], %rs{i};"
    return f"st.global.b{8 * storage(kind).itemsize} [%rd{20 + i}], {register(kind, i)};"


def kernel(case, guard):
    """Loads the operands of the thread and what the result was before, computes, stores."""
    kinds = [case.result, *case.operands]
    names = {letter: register(kind, i) for i, (letter, kind) in enumerate(zip("dabc", kinds))}
    text = re.sub(r"\b[dabc]\b", lambda m: names[m.group()], case.text)
    text = text if text.startswith("{") else f"{text};"
    first = """mov.u32 %r91, %ctaid.x;
        mov.u32 %r92, %tid.x;
        shl.b32 %r93, %r91, 6;
        add.s32 %r90, %r93, %r92;
        and.b32 %r94, %r90, 1;
        setp.ne.b32 %p90, %r94, 0;"""
    loads = [loaded(kind, i) for i, kind in enumerate(kinds)]
    return written("\n".join([first, *loads, guard + text, stored(case.result, 0)]), "pppp"[: len(kinds)], 64)


def computed(case, inputs, guard="", **options):
    """What the instruction leaves in its result, which holds ones before."""
    result = aligned(np.ones(len(inputs[0]), storage(case.result)))
    machine(kernel(case, guard), result, *inputs, grid=(len(result) // 64, 1, 1), **options)
    return result


def halves(bits, kind):
    """The elements of registers, two where a register holds two."""
    half = kind.removesuffix("x2")
    return bits if half == kind else bits.view(storage(half)), half


def references(case, inputs):
    """What the instruction should return, an element a row of operands; None where PTX leaves it open."""
    columns = [numbers(*halves(bits, kind)) for bits, kind in zip(inputs, case.operands)]
    for row in zip(*columns):
        if case.defined and not case.defined(*row):
            yield None
        else:
            value = case.reference(*row)
            yield from value if isinstance(value, tuple) else (value,)


def number(bits, kind):
    return numbers(np.array([bits], storage(kind)), kind)[0]


def is_nan(bits, kind):
    return is_float(kind) and bits & (1 << width(kind) - 1) - 1 > infinity(kind)


def agrees(case, kind, bits, value):
    expected = bits_of(value, kind)
    if "ftz" in case.opcode and flushed(number(expected, kind)) == 0:
        expected = value = expected & 1 << (width(kind) - 1)  # a zero of its sign
    if is_nan(expected, kind) or is_nan(bits, kind):
        return is_nan(expected, kind) and is_nan(bits, kind)
    if bits == expected or not case.error or not value:
        return bits == expected
    digits, least, _ = FORMATS[kind]
    # the bound, and half a unit of rounding what is within it
    most = abs(value) * (case.error + 2.0**-digits) + 2.0 ** (least - digits)
    return abs(number(bits, kind) - value) <= most


def assert_right(case, result, inputs):
    bits, kind = halves(result, case.result)
    wrong = [
        (i, got, value)
        for i, (got, value) in enumerate(zip(bits.tolist(), references(case, inputs), strict=True))
        if value is not None and not agrees(case, kind, got, value)
    ]
    for i, got, value in wrong[:1]:
        row = [hex(halves(bits, kind)[0].tolist()[i]) for bits, kind in zip(inputs, case.operands)]
        pytest.fail(
            f"{case.text} of {', '.join(row)} is {got:#x}, expected {bits_of(value, kind):#x}; "
            f"{len(wrong)} of {len(bits)} rows are wrong"
        )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_instruction(case):
    inputs = operands(case)
    result = computed(case, inputs)
    assert_right(case, result, inputs)
    if case.error:
        moved = computed(case, inputs, approximate=1)
        assert_right(case, moved, inputs)
        assert (moved != result).any()
    if not case.text.startswith("{"):
        guarded = computed(case, inputs, "@%p90 ")
        assert (guarded[1::2] == result[1::2]).all()
        assert (guarded[::2] == 1).all()


@pytest.mark.parametrize("kind", ["f32", "f64"])
@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize(
    ("text", "formula"),
    [
        ("add.{0} d, {1}, c", lambda a, b, c: a * b + c),
        ("add.{0} d, c, {1}", lambda a, b, c: a * b + c),
        ("sub.{0} d, {1}, c", lambda a, b, c: a * b - c),
        ("sub.{0} d, c, {1}", lambda a, b, c: c - a * b),
    ],
    ids=["ab+c", "c+ab", "ab-c", "c-ab"],
)
def test_product_and_sum_round_once_where_fused(kind, fuse, text, formula):
    """A product and a sum round once, as the assembler fuses them."""
    product = f"{REGISTERS[width(kind)]}60"
    text = f"mul.{kind} {product}, a, b;\n{text.format(kind, product)}"
    fused = Case(f"fma.{kind}", kind, [kind] * 3, once_rounded(formula), text)
    inputs = operands(fused)
    result = computed(fused, inputs, fuse=fuse)
    if fuse:
        assert_right(fused, result, inputs)
        return
    a, b, c = (bits.view(f"f{bits.itemsize}") for bits in inputs)
    with np.errstate(all="ignore"):
        expected = formula(a, b, c)
    assert np.array_equal(result.view(expected.dtype), expected, equal_nan=True)


def test_numbers_of_e4m3_are_those_of_torch():
    """All of float16, and what lies at and next to the middle of neighbours; beyond 448 it is 448."""
    numbers = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    ties = (numbers[1:] + numbers[:-1]) / 2
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    near = torch.cat([ties * (1 + shift) for shift in (-(2**-23), 0, 2**-23)])
    x = torch.cat([halves.float(), near.float(), -near.float(), torch.tensor([torch.inf, -3e38])])
    expected = x.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8).masked_fill(x.isnan(), 0x7F)
    assert np.array_equal(float8_bits(x.numpy()), expected.numpy())


def test_product_that_is_used_twice_or_states_its_rounding_is_not_fused():
    for text in (
        "mul.f32 %r60, a, b;\nadd.f32 %r61, %r60, c;\nadd.f32 d, %r60, c",
        "mul.rn.f32 %r60, a, b;\nadd.f32 d, %r60, c",
    ):
        apart = Case("mul.f32", "f32", ["f32"] * 3, None, text)
        inputs = operands(apart)
        assert (computed(apart, inputs) == computed(apart, inputs, fuse=False)).all()


def test_all_instructions_of_the_kernels_are_tested():
    """The kernels chosen have nearly all instructions; a Triton that makes others fails here."""
    tested = set().union(*(opcodes(kernel(case, "")) for case in CASES), *map(opcodes, KERNELS))
    made = kernel_opcodes.found()
    assert len(set().union(*made.values())) > 100
    missing = {name: unknown for name, found in made.items() if (unknown := sorted({*found} - tested))}
    assert not missing, "add them to instruction_cases.py or warp_kernels.py"
