"""A call of ours and the same of torch: results, strides, gradients and buffers, or exceptions, alike."""

import torch
from support.reference import UNITS, assert_accurate, error, nudged, outcome, unit

# what torch refuses on a CPU and takes on a GPU: parameters and statistics of unlike dtypes
OF_A_CPU = (
    "mixed dtype (CPU)",
    "expected scalar type BFloat16 but found Float",
    "expected scalar type Half but found Float",
    "!needs_dynamic_casting",
    "tensor does not have a device",  # a bias's gradient alone
)
NEAR = 4  # inputs and incoming gradients close by: torch may be lucky with one


class Results:
    """What one function makes of a call: y, gradients and buffers, or the exception."""

    def __init__(self, function, call, device, dtype=None):
        self.call, self.device, self.dtype = call, device, dtype
        self.tensors, self.buffers = call.made(device, dtype)
        self.y = outcome(function, **self.tensors, **self.buffers, **call.options)

    @property
    def raised(self):
        return isinstance(self.y, Exception)

    def differentiate(self, dy):
        wanted = {name: t for name, t in self.tensors.items() if t is not None and t.requires_grad}
        found = outcome(torch.autograd.grad, self.y, [*wanted.values()], dy) if wanted else ()
        self.gradients = found if isinstance(found, Exception) else dict(zip(wanted, found))

    def named(self):
        """{name: tensor} of all that can be compared."""
        found = {"y": self.y} | {f"gradient of {name}": t for name, t in self.gradients.items()}
        found |= {name: t for name, t in self.buffers.items() if t is not None}
        return {name: t.detach() for name, t in found.items()}

    def assert_tensors_are_as_before(self):
        assert_same_values(self.tensors, self.call.made(self.device, self.dtype)[0])


def assert_same_values(tensors, expected):
    for name, tensor in tensors.items():
        if tensor is not None:
            equal = torch.equal(tensor.nan_to_num(nan=7.0), expected[name].nan_to_num(nan=7.0))
            assert equal, f"{name} is {tensor}, expected {expected[name]}"


def assert_same_exception(ours, theirs):
    if not isinstance(ours, Exception) and str(theirs).startswith(OF_A_CPU):
        return
    assert isinstance(theirs, Exception), f"torch returns, normreg raised {ours!r}"
    assert isinstance(ours, Exception), f"torch raised {theirs!r}, normreg returns"
    assert (type(ours), str(ours)) == (type(theirs), str(theirs)), f"{ours!r}, torch's {theirs!r}"


def strides(tensor):
    """Its strides where they matter: those of a dimension of size 1 lead nowhere."""
    return [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]


def assert_agree(ours, theirs, call, dy, device, same_strides=True, luck=1.0):
    """The outcome of `ours(**call)` is that of `theirs(**call)`, for the incoming gradient of recipe dy.

    luck: how many times torch's error is allowed, where both round what lies between to 16 bits.
    """
    mine, its = Results(ours, call, device), Results(theirs, call, device)
    mine.assert_tensors_are_as_before()
    if its.raised or mine.raised:
        assert_same_exception(mine.y, its.y)
        return assert_same_values(mine.buffers, its.buffers) if mine.raised else None
    described = [(t.dtype, t.shape, t.requires_grad, same_strides and strides(t)) for t in (mine.y, its.y)]
    assert described[0] == described[1], f"dtype, shape ...: {described[0]}, torch's {described[1]}"
    for results in (mine, its):
        results.differentiate(dy.make(device, its.y.dtype).detach())
    mine.assert_tensors_are_as_before()
    if any(isinstance(results.gradients, Exception) for results in (mine, its)):
        return assert_same_exception(mine.gradients, its.gradients)
    assert_accurate_results(mine.named(), its.named(), theirs, call, dy.make(device, its.y.dtype), luck)


def assert_accurate_results(mine, its, theirs, call, dy, luck):
    # contiguous: with others torch's instance_norm has wrong gradients
    exact = exact_results(theirs, call, dy.double().contiguous())
    errors = None
    for name, own in mine.items():
        assert own.dtype == its[name].dtype, f"{name}: {own.dtype}, torch's {its[name].dtype}"
        special = ~exact[name].isfinite()
        for kind in (torch.isnan, torch.isposinf):
            same = torch.equal(kind(own)[special], kind(its[name])[special])
            assert same, f"{name}: {kind.__name__} {own}, torch's {its[name]}"
        compared = ~special & its[name].isfinite()  # torch's 16 bits overflow between its operations
        our, torchs, right = (torch.where(compared, t, 0) for t in (own, its[name], exact[name]))
        torchs_error = error(torchs, right)
        if error(our, right) <= torchs_error + UNITS[our.dtype] * unit(right, our.dtype):
            continue
        errors = errors or errors_nearby(theirs, call, dy, exact)
        near_error, slack = errors[name]
        assert_accurate(our, luck * max(torchs_error, near_error), right, name, slack)


def exact_results(function, call, dy, move=lambda tensor: tensor):
    """What the function gives in float64, of tensors that are moved."""

    def of_moved(**given):
        return function(**given | {name: moved(given[name], move) for name in call.tensors})

    results = Results(of_moved, call, dy.device, torch.float64)
    results.differentiate(dy)
    return results.named()


def moved(tensor, move):
    return tensor if tensor is None else tensor + (move(tensor.detach()) - tensor.detach())


def errors_nearby(theirs, call, dy, exact):
    """{name: (torch's largest error for calls close by, what a rounding of the arithmetic moves it by)}."""
    torch.manual_seed(0)  # each example ends as it did
    device, found = dy.device, {name: [0.0, 0.0] for name in exact}
    computed_in = torch.float64 if call.widest() == torch.float64 else torch.float32
    for _ in range(NEAR):
        near = dy.detach() + (dy.detach() * torch.randn_like(dy) / 128).to(dy.dtype)
        results = Results(theirs, call, device)
        results.differentiate(near)
        right = exact_results(theirs, call, near.double().contiguous())
        wide = dy.detach().double().contiguous()
        # in float64, where the reference rounds as we do, all inputs are moved
        near_inputs = [lambda t: nudged(t, torch.float64)] * (computed_in == torch.float64)
        by_a_unit = exact_results(theirs, call, nudged(wide, computed_in), *near_inputs)
        for name, tensor in results.named().items():
            finite = tensor.isfinite()
            errors = found[name]
            errors[0] = max(
                errors[0], error(torch.where(finite, tensor, 0), torch.where(finite, right[name], 0))
            )
            difference = torch.where(finite, by_a_unit[name] - exact[name], 0)
            errors[1] = max(errors[1], 2 * difference.abs().max().item() if difference.numel() else 0.0)
    for name, errors in found.items():
        errors[1] += rounding(name, call, dy, computed_in)
    return found


def rounding(name, call, dy, computed_in):
    """What a term is rounded by at most: all that is left of a sum of two or three that cancel."""
    if name.startswith("gradient"):
        eps, weight = call.options.get("eps", 1.0), call.made(dy.device)[0].get("weight")
        rstd = 1.0 if eps is None or not eps > 0 else eps**-0.5
        return unit(dy.detach(), computed_in) * rstd * (1.0 if weight is None else weight.abs().max().item())
    if name in call.buffers:  # (1 - momentum) running + momentum new
        before = call.made(dy.device)[1][name]
        return unit(before, before.dtype) * (1 + abs(call.options["momentum"]))
    return 0.0
