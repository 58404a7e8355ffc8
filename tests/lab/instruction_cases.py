"""Instructions of one thread: their operands and what they return, in Python's integers and rational numbers.

All that Triton's PTX of the kernels has, and the others that the emulator knows.
"""

import functools
import math
import operator
from dataclasses import dataclass
from typing import Any

from exact_numbers import flushed, once_rounded, square_root

CASES = []


@dataclass(frozen=True)
class Case:
    opcode: str
    result: str  # type of the result, ends in x2 where a register holds two
    operands: list[str]  # types
    reference: Any  # function of numbers of these types
    text: str  # the instruction with d for its result and a, b, c for operands
    defined: Any = None  # function of the operands: whether PTX defines the result
    error: float = 0  # relative, that the manual of PTX allows

    def __str__(self):
        return self.opcode if self.text.startswith(self.opcode + " d") else self.text


def case(opcode, result, operands, reference, text=None, **more):
    kinds = operands.split()
    text = text or f"{opcode} {', '.join('dabc'[: len(kinds) + 1])}"
    CASES.append(Case(opcode, result, kinds, reference, text, **more))


def same(opcode, operands, reference, **more):
    """An instruction all of whose operands have the type that it ends in."""
    kind = opcode.rpartition(".")[2]
    case(opcode, kind, " ".join([kind] * operands), reference, **more)


# Arithmetic that rounds once
def multiply_add(a, b, c):
    return a * b + c


EXACT = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "fma": multiply_add,
    "div": operator.truediv,
}  # fmt: skip
for opcode in (
    "add.f32", "add.f64", "add.rn.f64", "add.f32x2", "add.bf16", "add.bf16x2",
    "sub.f32", "sub.f64", "sub.f32x2", "sub.bf16", "mul.f32", "mul.f64", "mul.f32x2", "mul.bf16",
    "mul.bf16x2",
    "fma.rn.f32", "fma.rn.f64", "fma.rn.f32x2", "fma.rn.bf16", "fma.rn.f16x2",
    "div.rn.f32", "div.rn.f64",
):  # fmt: skip
    name = opcode.split(".")[0]
    same(opcode, 3 if name == "fma" else 2, once_rounded(EXACT[name]))
for narrow in ("bf16", "f16"):  # of sm_100: 16-bit operands, a float32 last operand and result
    for name in ("add", "sub", "fma"):
        kinds = [narrow] * (2 if name == "fma" else 1) + ["f32"]
        case(f"{name}.rn.f32.{narrow}", "f32", " ".join(kinds), once_rounded(EXACT[name]))


def flushing(f):
    """ftz: subnormal operands are zeros; results are by the test, after they round."""
    return lambda *values: f(*map(flushed, values))


same("fma.rn.ftz.f32", 3, flushing(once_rounded(multiply_add)))
same("abs.ftz.f32", 1, flushing(abs))
same("sqrt.rn.f32", 1, square_root)
same("sqrt.rn.f64", 1, square_root)
for kind in ("f32", "f64"):
    same(f"neg.{kind}", 1, operator.neg)
    same(f"abs.{kind}", 1, abs)
    same(f"copysign.{kind}", 2, lambda sign, value: math.copysign(value, sign))


# The less and the greater, where +0 is greater than -0
def extreme(choose, keeps_nan):
    def choice(a, b):
        if math.isnan(a) or math.isnan(b):
            return math.nan if keeps_nan else (b if math.isnan(a) else a)
        return choose(a, b, key=lambda x: (x, math.copysign(1, x)))

    return choice


for name, choose in (("min", min), ("max", max)):
    for kind in ("f32", "f64"):
        same(f"{name}.{kind}", 2, extreme(choose, False))
    same(f"{name}.NaN.f32", 2, extreme(choose, True))
    for kind in ("s32", "u32", "s64", "u64"):
        same(f"{name}.{kind}", 2, choose)


# Approximations, whose relative error the manual bounds
def or_nan(f):
    """The function, its limits at the ends, NaN outside of where it is defined."""

    def value(*x):
        try:
            return f(*x)
        except ValueError:
            return math.nan
        except OverflowError:
            return math.inf

    return value


def inverse(x):
    return math.copysign(math.inf, x) if x == 0 else 1 / x


def inverse_root(x):
    return math.copysign(math.inf, x) if x == 0 else 1 / math.sqrt(x)


def logarithm(x):
    return -math.inf if x == 0 else math.log2(x)


same("rsqrt.approx.f64", 1, or_nan(inverse_root), error=2**-51)  # no bound in the manual: two units
same("div.full.f32", 2, once_rounded(operator.truediv), error=2**-22)  # two units
for name, reference, error in (
    ("rsqrt", inverse_root, 2**-22.9),
    ("ex2", lambda x: 2.0**x, 2**-22.5),
    ("rcp", inverse, 2**-23),
    ("sqrt", math.sqrt, 2**-22.9),
):
    same(f"{name}.approx.f32", 1, or_nan(reference), error=error)
    same(f"{name}.approx.ftz.f32", 1, flushing(or_nan(reference)), error=error)
same("tanh.approx.f32", 1, math.tanh, error=2**-10.987)
case(
    "lg2.approx.f32", "f32", "f32", or_nan(logarithm), error=2**-22, defined=lambda x: not 0.5 <= x <= 2
)  # nearer to 1 the bound is absolute

# Integers
for opcode in ("add.s16", "add.s32", "add.s64", "sub.s32", "sub.s64", "mul.lo.s32", "mul.lo.s64"):
    same(opcode, 2, EXACT[opcode.split(".")[0]])
for kind in ("s32", "s64"):
    same(f"mad.lo.{kind}", 3, multiply_add)
for kind in ("s32", "u32"):
    double = kind[0] + "64"
    case(f"mul.wide.{kind}", double, f"{kind} {kind}", operator.mul)
    case(f"mad.wide.{kind}", double, f"{kind} {kind} {double}", multiply_add)
for kind, bits in (("s32", 32), ("u32", 32), ("u64", 64)):
    same(f"mul.hi.{kind}", 2, lambda a, b, bits=bits: a * b >> bits)


def truncated(a, b):
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


for kind, least in (("s32", -(2**31)), ("s64", -(2**63)), ("u32", None)):

    def in_range(a, b, least=least):
        return b != 0 and (a, b) != (least, -1)

    same(f"div.{kind}", 2, truncated, defined=in_range)
    same(f"rem.{kind}", 2, lambda a, b: a - b * truncated(a, b), defined=in_range)
same("neg.s32", 1, operator.neg)
case("popc.b32", "u32", "b32", int.bit_count)
case("clz.b32", "u32", "b32", lambda a: 32 - a.bit_length())

# Bits
for kind in ("pred", "b16", "b32", "b64"):
    for name, f in (("and", operator.and_), ("or", operator.or_), ("xor", operator.xor)):
        same(f"{name}.{kind}", 2, f)
    same(f"not.{kind}", 1, (lambda a: not a) if kind == "pred" else operator.invert)
for bits in (16, 32, 64):  # amounts of more than all bits shift all out
    case(f"shl.b{bits}", f"b{bits}", f"b{bits} n32", lambda a, n, bits=bits: a << min(n, bits))
    for kind in (f"u{bits}", f"s{bits}"):
        case(f"shr.{kind}", kind, f"{kind} n32", lambda a, n, bits=bits: a >> min(n, bits))
case("shf.l.wrap.b32", "b32", "b32 b32 n32", lambda low, high, n: ((high << 32 | low) << (n & 31)) >> 32)
case("shf.r.wrap.b32", "b32", "b32 b32 n32", lambda low, high, n: (high << 32 | low) >> (n & 31))


def fields(first, bits):
    """Functions that take a field of bits without and with its sign, and one that puts it in."""
    mask = (1 << bits) - 1
    top = 1 << bits - 1
    return (
        lambda a: a >> first & mask,
        lambda a: ((a >> first & mask) ^ top) - top,
        lambda a, b: (a & mask) << first | b & ~(mask << first),
    )


for first, bits in ((0, 1), (3, 4), (28, 4), (31, 1), (0, 32)):
    unsigned, signed, put = fields(first, bits)
    case("bfe.u32", "u32", "u32", unsigned, f"bfe.u32 d, a, {first}, {bits}")
    case("bfe.s32", "s32", "s32", signed, f"bfe.s32 d, a, {first}, {bits}")
    case("bfi.b32", "b32", "b32 b32", put, f"bfi.b32 d, a, b, {first}, {bits}")


def permuted(a, b, selectors):
    both = (b << 32 | a).to_bytes(8, "little")
    picked = [(both[s & 7], s & 8) for s in (selectors >> 4 * i & 15 for i in range(4))]
    return int.from_bytes([(255 if byte & 128 else 0) if sign else byte for byte, sign in picked], "little")


case("prmt.b32", "b32", "b32 b32 b32", permuted)
for selectors in ("0x5432U", "0x7531U", "0x3340U", "0xba98U"):
    chosen = functools.partial(permuted, selectors=int(selectors.rstrip("U"), 16))
    case("prmt.b32", "b32", "b32 b32", chosen, f"prmt.b32 d, a, b, {selectors}")


def looked_up(table):
    def bits(a, b, c):
        picks = [table >> (4 * (a >> i & 1) + 2 * (b >> i & 1) + (c >> i & 1)) & 1 for i in range(32)]
        return sum(bit << i for i, bit in enumerate(picks))

    return bits


for table in (0x96, 0xE8, 0x2A):
    case("lop3.b32", "b32", "b32 b32 b32", looked_up(table), f"lop3.b32 d, a, b, c, {table:#x}")

# Comparisons: in order, false of NaN; unordered, true of it
COMPARISONS = {name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")}


def comparison(f, of_nan):
    return lambda a, b: of_nan if math.isnan(a) or math.isnan(b) else f(a, b)


for name, f in COMPARISONS.items():
    for kind in ("f32", "f64"):
        case(f"setp.{name}.{kind}", "pred", f"{kind} {kind}", comparison(f, False))
        case(f"setp.{name}u.{kind}", "pred", f"{kind} {kind}", comparison(f, True))
    for kind in ("b16", "b32", "b64") if name in ("eq", "ne") else ("s16", "s32", "s64", "u32", "u64"):
        case(f"setp.{name}.{kind}", "pred", f"{kind} {kind}", f)
for name, of_nan in (("num", False), ("nan", True)):
    case(f"setp.{name}.f32", "pred", "f32 f32", comparison(lambda a, b, r=not of_nan: r, of_nan))
for name, f in (("and", operator.and_), ("or", operator.or_), ("xor", operator.xor)):
    opcode = f"setp.lt.{name}.s32"
    case(opcode, "pred", "s32 s32 pred", lambda a, b, c, f=f: f(a < b, bool(c)))
    case(opcode, "pred", "s32 s32 pred", lambda a, b, c, f=f: f(a < b, not c), f"{opcode} d, a, b, !c")
for kind in ("b16", "b32", "b64", "f32", "f64"):
    case(f"selp.{kind}", "b" + kind[1:], f"b{kind[1:]} b{kind[1:]} pred", lambda a, b, p: a if p else b)

# Moves keep bits
for kind in ("b16", "u16", "b32", "u32", "b64", "u64"):
    same(f"mov.{kind}", 1, lambda a: a)
for value, number in (("-1", -1), ("0x7F", 127), ("0f3FC00000", 0x3FC00000), ("0", 0)):
    case("mov.b32", "b32", "b32", lambda a, n=number: n, f"mov.b32 d, {value}")
case("mov.b64", "b64", "b64", lambda a: 0x3FF8 << 48, "mov.b64 d, 0d3FF8000000000000")
case("mov.pred", "pred", "pred", lambda a: True, "mov.pred d, -1")
case("mov.pred", "pred", "pred", lambda a: False, "mov.pred d, 0")
case("mov.b32", "b32", "b16 b16", lambda a, b: b << 16 | a, "mov.b32 d, {a, b}")
case("mov.b64", "b64", "b32 b32", lambda a, b: b << 32 | a, "mov.b64 d, {a, b}")
case("mov.b32", "b16", "b32", lambda a: a, "mov.b32 {d, %rs90}, a")
case("mov.b32", "b16", "b32", lambda a: a >> 16, "mov.b32 {%rs90, d}, a")
case("mov.b64", "b32", "b64", lambda a: a, "{ .reg .b32 tmp; mov.b64 {d, tmp}, a; }")
case("mov.b64", "b32", "b64", lambda a: a >> 32, "{ .reg .b32 tmp; mov.b64 {tmp, d}, a; }")
case("mov.b64", "b32", "b64", lambda a: a >> 32, "mov.b64 {_, d}, a")

# Conversions
for wide, narrow in (("f32", "bf16"), ("f32", "f16"), ("f64", "bf16"), ("f64", "f16"), ("f64", "f32")):
    case(f"cvt.{wide}.{narrow}", wide, narrow, float)
for pair in ("bf16.f32", "f16.f32", "f32.f64", "f32.s32", "f32.s64", "f64.s32", "f64.s64", "f64.u32"):
    case(f"cvt.rn.{pair}", *pair.split("."), lambda a: a)
for narrow in ("bf16", "f16"):
    case(f"cvt.rn.{narrow}x2.f32", f"{narrow}x2", "f32 f32", lambda high, low: (low, high))


def e4m3(a):
    """The bits of a number as e4m3, whose largest is 448."""
    if math.isnan(a):
        return 0x7F
    sign, a = math.copysign(1, a) < 0, min(abs(a), 448)
    exponent = max(math.frexp(a)[1] - 1, -6) if a else -6
    return sign << 7 | (exponent + 6 << 3) + round(math.ldexp(a, 3 - exponent))


case("cvt.rn.satfinite.e4m3x2.f32", "b16", "f32 f32", lambda high, low: e4m3(high) << 8 | e4m3(low))


def nearest_integer(a):
    return math.copysign(round(a), a) if math.isfinite(a) else a


def saturated(a, bits=32):
    if math.isnan(a):
        return 0
    most = (1 << bits - 1) - 1
    return max(-most - 1, min(most, int(a) if math.isfinite(a) else math.copysign(2 * most, a)))


case("cvt.rni.f32.f32", "f32", "f32", nearest_integer)
case("cvt.rzi.s32.f32", "s32", "f32", saturated)
case("cvt.s16.s8", "s16", "b16", lambda a: (a & 0xFF ^ 0x80) - 0x80)
case("cvt.s32.s8", "s32", "b32", lambda a: (a & 0xFF ^ 0x80) - 0x80)
for pair in ("s64.s32", "u16.u32", "u32.u16", "u32.u64", "u64.u32"):
    case(f"cvt.{pair}", *pair.split("."), lambda a: a)
