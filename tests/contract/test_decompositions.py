"""`decomposition_table`: each operator in torch's operations, and programs and graphs of these."""

import programs
import pytest
import torch
from functorch.compile import make_boxed_func
from operations import LAYERS, OURS, every_function, every_layer
from operator_calls import EXAMPLES, calls_of, copied
from operator_calls import guarded_memory as guarded_memory
from operator_cases import CASES, FLOAT, OPERATORS
from support.philox import philox_in_python
from support.reference import UNITS, assert_accurate, copies, error, leave_initial_values, nudged, unit
from torch._dynamo.backends.common import aot_autograd
from torch.fx.experimental.proxy_tensor import make_fx

import normreg
from normreg.kernels.dtypes import FLOAT8, compute_dtype
from normreg.kernels.memory_format import flags_of
from normreg.ops.random import philox

TABLE = normreg.decomposition_table()
CURVED = {"gelu", "gelu_tanh", "silu"}  # whose errors in the kernels `device.activations` states


def test_every_operator_has_one():
    defined = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("normreg::")}
    assert {operator._schema.name for operator in TABLE} == defined


def in_float64(argument, move=lambda t: t):
    """A copy in float64, in which results and dtypes are asked for, too; moved, if a number."""
    if isinstance(argument, torch.Tensor):
        argument = copied(argument)
        return move(argument.double()) if argument.is_floating_point() else argument
    return torch.float64 if isinstance(argument, torch.dtype) else argument


def results_of(call, arguments):
    """All results, and then the arguments, which may have been changed."""
    found = call(*arguments)
    return [*(found if isinstance(found, tuple) else (found,)), *arguments]


def assert_decomposed(operator, arguments):
    """Results are the operator's but for rounding: neither is further from float64 than the other.

    By more than a unit of the dtype that is returned, or of float32 where that is computed in, and twice what
    the result moves by where all arguments move by such a unit, as in `reference.assert_agrees`.
    """
    decomposition, computed_in = TABLE[operator], compute_dtype(arguments[0].dtype)
    with torch.no_grad():
        theirs = results_of(operator, list(map(copied, arguments)))
        ours = results_of(decomposition, list(map(copied, arguments)))
        exact = results_of(decomposition, list(map(in_float64, arguments)))
        moved = [in_float64(argument, lambda t: nudged(t, computed_in)) for argument in arguments]
        moved = results_of(decomposition, moved)
        if operator.name() == "normreg::dropout":  # the dtype says how many bits a decision has
            exact = moved = [t.double() if isinstance(t, torch.Tensor) else t for t in theirs]
    for our, their, reference, near in zip(ours, theirs, exact, moved, strict=True):
        if not isinstance(their, torch.Tensor):
            assert our == their
            continue
        assert (our.shape, our.stride(), our.dtype) == (their.shape, their.stride(), their.dtype)
        if their.dtype == FLOAT8:
            our, their = our.float(), their.float()
            assert ((our - their).abs() <= their.abs() / 8).all()
            assert (our == their).float().mean() > 0.9
        elif their.is_floating_point():
            reference = reference.double()
            slack, units = 2 * error(near, reference), UNITS
            if CURVED.intersection(a for a in arguments if isinstance(a, str)):
                slack += 3 * unit(reference, computed_in)
            if their.dtype == torch.float64 != computed_in:
                slack, units = slack + unit(reference, computed_in), {torch.float64: 1}
            assert_accurate(our, their, reference, "decomposed", slack, units)
            assert_accurate(their, our, reference, "the operator's", slack, units)
        elif not torch.equal(our, their):  # bits, of which a byte has some beyond the last element
            assert torch.equal(*(flags_of(bits, arguments[0]) for bits in (our, their)))


@pytest.mark.parametrize(("name", "arguments"), CASES.values(), ids=CASES)
def test_results(device, name, arguments):
    assert_decomposed(getattr(OPERATORS, name).default, arguments(device))


@pytest.mark.some(40)
@pytest.mark.parametrize(("kind", "variant"), EXAMPLES)
def test_results_of_examples(device, monkeypatch, kind, variant):
    for operator, arguments in calls_of(kind, variant, device, monkeypatch):
        assert_decomposed(operator, arguments)


# what the forward is given beside x, weight and bias, and the backward beside these and what is saved
OF_A_LARGE_MEAN = {
    "layer_norm": (((5,), 1e-5, FLOAT, True), ((5,), FLOAT)),
    "group_norm": ((2, 1e-5, FLOAT, True), (2, 1e-5, FLOAT)),
    "batch_norm": ((None, None, None, 0.1, 1e-5, True), (1e-5, FLOAT, True)),
}


@pytest.mark.parametrize("name", OF_A_LARGE_MEAN)
def test_a_large_mean(device, name):
    """Moves no result and no gradient, because what is saved of it are both of its parts."""
    x, dy = 1e6 + torch.randn(3, 4, 1, 5, device=device), torch.randn(3, 4, 1, 5, device=device)
    forward, backward = (TABLE[getattr(OPERATORS, name + end).default] for end in ("", "_backward"))
    found = []
    for move in (lambda argument: argument, in_float64):
        options, of_backward = (tuple(map(move, some)) for some in OF_A_LARGE_MEAN[name])
        y, *saved = forward(move(x), None, None, *options)
        dx, *_ = backward(move(dy), move(x), None, *saved, *of_backward, [True, False, False])
        found.append((y, dx))
    for ours, exact in zip(*found, strict=True):
        assert error(ours, exact) <= 4 * unit(exact, FLOAT)


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("cols", [None, 13], ids=["elements", "rows"])
def test_masks(device, bits, cols):
    """Bit for bit the kernels', of seeds and of rows of any size."""
    x = torch.ones(7, 13, device=device, dtype=torch.bfloat16 if bits == 16 else torch.float32)
    for seed in (0, 5, 2**62 + 2**33 + 2**31 + 1, 2**63 - 1):
        seed = torch.tensor(seed, device=device)
        if cols is None:
            call, arguments = OPERATORS.dropout.default, (x, seed, 0.3, None, "unscaled", True)
        else:
            arguments = x, None, None, None, seed, 0.3, bits, False, False, cols, x.dtype
            call = OPERATORS.dropout_add.default
        assert torch.equal(TABLE[call](*arguments), call(*arguments))


@pytest.mark.parametrize("seed", [0, 0x123456789ABCDEF0 >> 1, 2**63 - 1])
def test_words(device, seed):
    """Random words of calls of up to 63 bits, for which no tensor here is large enough."""
    calls = [0, 7, 2**32 - 1, 2**34 + 5, 2**63 - 1]
    words = philox(torch.tensor(seed, device=device), torch.tensor(calls, device=device))
    assert words.tolist() == [philox_in_python(seed, call) for call in calls]


@pytest.mark.some(20)
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@every_layer
def test_programs(device, row, training):
    """What export makes of a layer has no operator of ours then, and does the same to its buffers."""
    layer = row.make().to(device).train(training)
    leave_initial_values(layer)
    x = torch.randn(5, *row.sample, device=device)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    decomposed = program.run_decompositions(TABLE)
    assert "normreg" in program.graph_module.code or row.draws
    assert "normreg" not in decomposed.graph_module.code
    modules, results = [p.module() for p in (decomposed, program)], []
    x = torch.randn(8, *row.sample, device=device)
    for module in modules:
        torch.manual_seed(3)
        results.append(module(x))
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*(module.state_dict() for module in modules))


@pytest.mark.parametrize("kind", ["BatchNormAct2d with a residual", "Dropout", "GroupNorm", "LayerNorm2d"])
def test_images_of_any_size(device, kind):
    layer, of_any = LAYERS[kind].make().to(device), {dim: torch.export.Dim(f"size{dim}") for dim in (0, 2, 3)}
    channels, *_ = LAYERS[kind].sample
    small, large = (torch.randn(3, channels, *image, device=device) for image in ((6, 7), (9, 5)))
    program = torch.export.export(layer, (small,), dynamic_shapes=(of_any,))
    results = []
    for one in (program.run_decompositions(TABLE), program):
        torch.manual_seed(3)
        results.append(one.module()(large))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("kind", ["BatchNorm2d", "BatchNormAct2d"])
def test_a_program_that_trains(device, kind):
    """Step after step: what moves the running statistics has no gradient."""
    layer = LAYERS[kind].make().to(device)
    x = torch.randn(5, *LAYERS[kind].sample, device=device)
    program = torch.export.export(layer, (x,)).run_decompositions(TABLE).module()
    for _ in range(2):
        program(x.requires_grad_()).square().sum().backward()
    assert not any(buffer.requires_grad for buffer in program.buffers())


def test_a_process_without_normreg(device, tmp_path):
    """Runs a program that was saved, in torch's core operators, which updates its running statistics."""
    model = torch.nn.Sequential(
        normreg.BatchNormAct2d(4, act="relu"),
        normreg.GroupNorm(2, 4),
        normreg.Dropout2d(0.3),
        normreg.InstanceNorm2d(4, track_running_stats=True),
        normreg.LayerNorm2d(4),
        normreg.AlphaDropout(0.3),
        normreg.RMSNorm(5),
    ).to(device)
    leave_initial_values(model)
    x = torch.randn(3, 4, 2, 5, device=device)
    table = torch.export.default_decompositions()
    table.update(TABLE)
    program = torch.export.export(model, (x,))
    torch.export.save(program.run_decompositions(table), tmp_path / "program.pt2")
    torch.save(x, tmp_path / "x.pt")
    module = program.module()
    torch.manual_seed(3)
    expected = module(x), module.state_dict()
    programs.compiling("without_normreg", str(tmp_path))
    torch.testing.assert_close(torch.load(tmp_path / "computed.pt"), expected)


def decomposing(called):
    """A backend of torch.compile that traces forward and backward again, and counts our operators in each.

    AOTAutograd wraps those that update statistics, unless it decomposes them itself.
    """
    updating = {operator: TABLE[operator] for operator in TABLE if operator._schema.is_mutable}

    def compiler(graph, inputs):
        called.append(graph.code.count("normreg"))
        traced = make_fx(graph, decomposition_table=TABLE, tracing_mode="fake")(*inputs)
        assert "normreg" not in traced.code
        return make_boxed_func(traced)

    return aot_autograd(fw_compiler=compiler, bw_compiler=compiler, decompositions=updating)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.some(8)
@every_function
def test_compiled_graphs(device, row):
    """Forward and backward as torch.compile has them, decomposed, compute what eager mode does."""
    called, results, given = [], [], row.inputs(device)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *inputs: row(OURS, *inputs), backend=decomposing(called), fullgraph=True)
    for call in (compiled, lambda *inputs: row(OURS, *inputs)):
        inputs = copies(given)
        torch.manual_seed(3)
        with normreg.recorded_as("operators"):
            y = call(*inputs)
            wanted = [t for t in inputs if t.requires_grad]
            results.append([y, *torch.autograd.grad(y, wanted, torch.ones_like(y))])
    assert len(called) == 2
    assert sum(called) or not row.launches
    torch.testing.assert_close(*results)
