"""What each rank of `test_data_parallel.py` checks: DistributedDataParallel and fully_shard."""

import copy
import tempfile
import warnings

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from split_batches import launched
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import normreg

warnings.filterwarnings("ignore", category=FutureWarning)


class Network(nn.Module):
    """A network with every kind of norm, whose layer `spare` is used every other time."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 1)
        self.batch_norm = nn.BatchNorm2d(4)
        self.layer_norm = nn.LayerNorm(6)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(6, 6)
        self.rms_norm = nn.RMSNorm(6)
        self.spare = nn.Linear(6, 6)

    def forward(self, x, spare=True):
        x = self.layer_norm(self.batch_norm(self.conv(x)).relu())
        x = self.rms_norm(self.head(self.dropout(x)))
        return self.spare(x) if spare else x


def networks(dropout=0.0, dtype=torch.float64):
    """torch's network, and the same on normreg's layers with SyncBatchNorm."""
    torch.manual_seed(1)
    theirs = Network(dropout).to(dtype)
    ours = copy.deepcopy(theirs)
    normreg.replace(ours)
    return theirs, normreg.convert_sync_batchnorm(ours)


def batches(rank, size, steps, dtype=torch.float64):
    """(this rank's part, the whole batch) of each step."""
    torch.manual_seed(2)
    whole = [torch.randn(3 * size, 2, 3, 6, dtype=dtype) for _ in range(steps)]
    return [(x[3 * rank : 3 * rank + 3], x) for x in whole]


def assert_same_state(ours, theirs):
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        torch.testing.assert_close(
            tensor, theirs[name], rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


def trained_alike(rank, size, loss, prepared=lambda model: model, **options):
    """Training under DistributedDataParallel, of 2 steps, is training on the whole batch without it."""
    theirs, ours = networks()
    ours = DistributedDataParallel(prepared(ours), **options)
    optimizers = [torch.optim.SGD(model.parameters(), 0.1) for model in (theirs, ours)]
    with launched() as names:
        for index, parts in enumerate(batches(rank, size, 2)):
            for model, optimizer, x in zip((ours, theirs), reversed(optimizers), parts):
                optimizer.zero_grad()
                loss(model, x, index).backward()
                optimizer.step()
    assert {name for name in names if name.startswith("sync_batch_norm")}
    assert_same_state(ours.module, theirs)


def training_is_that_of_the_whole_batch(rank, size):
    for broadcast_buffers in (True, False):
        trained_alike(rank, size, lambda m, x, _: m(x).square().mean(), broadcast_buffers=broadcast_buffers)


def two_forwards_before_a_backward(rank, size):
    for broadcast_buffers in (True, False):
        trained_alike(
            rank, size, lambda m, x, _: (m(x) * m(2 * x + 1)).mean(), broadcast_buffers=broadcast_buffers
        )
    # plain BatchNorm's running statistics are each rank's own, and broadcast before the second forward
    model = DistributedDataParallel(normreg.BatchNorm2d(2))
    x = torch.randn(3, 2, 4, requires_grad=True)[..., None]
    (model(x) * model(x + 1)).sum().backward()
    model.eval()
    loss = model(x).sum()
    model.train()(x)
    loss.backward()


def unused_parameters(rank, size):
    trained_alike(
        rank, size, lambda m, x, step: m(x, step % 2 == 0).square().mean(), find_unused_parameters=True
    )


def a_static_graph_with_checkpoints(rank, size):
    """SyncBatchNorm's collectives are repeated in the backward, and so are its statistics, as torch's."""

    def prepared(model):
        whole = model.layer_norm.forward
        model.layer_norm.forward = lambda x: checkpoint(whole, x, use_reentrant=False)
        return model

    trained_alike(rank, size, lambda m, x, _: m(x).square().mean(), prepared, static_graph=True)


def accumulated_gradients(rank, size):
    theirs, ours = networks()
    ours = DistributedDataParallel(ours)
    (first, whole_first), (second, whole_second) = batches(rank, size, 2)
    with ours.no_sync():
        ours(first).square().mean().backward()
    ours(second).square().mean().backward()
    for x in (whole_first, whole_second):
        theirs(x).square().mean().backward()
    for (name, a), b in zip(ours.module.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def masks_of_ranks(rank, size):
    """Ranks with seeds of their own drop other elements; those that share a generator's state, the same."""
    x = torch.ones(64, 8)

    def masks(tensor):
        everywhere = [torch.empty_like(tensor) for _ in range(size)]
        dist.all_gather(everywhere, tensor)
        return everywhere

    for p in (0.5, 0.1):
        torch.manual_seed(10 + rank)
        first, *others = masks(normreg.functional.dropout(x, p))
        assert all(not torch.equal(first, other) for other in others)
        torch.manual_seed(10 + rank)
        generator = torch.Generator().manual_seed(7)
        first, *others = masks(normreg.functional.dropout(x, p, generator=generator))
        assert all(torch.equal(first, other) for other in others)


# fully_shard


def sharded(rank, size, policy, norms_policy=None, dropout=0.0):
    """torch's network in the precision of the policy, and normreg's, sharded."""
    theirs, ours = networks(dropout, torch.float32)
    ours.batch_norm = normreg.BatchNorm2d(4)  # whose buffers FSDP leaves alone
    if norms_policy is not None:
        for norm in (ours.batch_norm, ours.layer_norm, ours.rms_norm):
            fully_shard(norm, mp_policy=norms_policy)
    fully_shard(ours, mp_policy=policy)
    return theirs, ours


def fully_sharded_in_mixed_precision(rank, size):
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    full = MixedPrecisionPolicy(cast_forward_inputs=False)
    for policy, norms_policy, tolerance in (
        (MixedPrecisionPolicy(), None, 1e-5),
        (half, None, 0.05),
        (half, full, 0.05),
    ):
        theirs, ours = sharded(rank, size, policy, norms_policy)
        seen = []
        for norm in (ours.batch_norm, ours.layer_norm, ours.rms_norm):
            norm.register_forward_pre_hook(
                lambda m, inputs, seen=seen: seen.append((inputs[0].dtype, m.weight.dtype, type(m.weight)))
            )
        x = torch.randn(3, 2, 3, 6)
        with launched() as names:
            y = ours(x)
            y.float().square().mean().backward()
        dtype = policy.param_dtype or torch.float32
        of_weight = dtype if norms_policy is None else torch.float32
        assert set(seen) == {(dtype, of_weight, nn.Parameter)}, seen
        kinds = ("batch_norm", "layer_norm_forward", "layer_norm_backward")
        assert all(any(n.startswith(kind) for n in names) for kind in kinds)
        assert ours.batch_norm.running_var.dtype == torch.float32
        expected = theirs(x)
        expected.square().mean().backward()
        torch.testing.assert_close(y.float(), expected, rtol=tolerance, atol=tolerance)
        for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert p.grad.dtype == torch.float32
            scale = q.grad.abs().max().item() + 0.05  # a bias before BatchNorm has none
            error = (p.grad.full_tensor() - averaged(q.grad)).abs().max().item()
            assert error <= 2 * tolerance * scale, f"{name}: {error} of {scale}"


def averaged(tensor):
    dist.all_reduce(tensor := tensor.clone())
    return tensor / dist.get_world_size()


def checkpoints_draw_the_same_masks(rank, size):
    gradients = []
    for recompute in (False, True):
        _, ours = sharded(rank, size, MixedPrecisionPolicy(), dropout=0.4)
        torch.manual_seed(20 + rank)
        x = torch.randn(3, 2, 3, 6)
        y = checkpoint(ours, x, use_reentrant=False) if recompute else ours(x)
        y.square().mean().backward()
        gradients.append([p.grad.full_tensor() for p in ours.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def a_state_dict_saved_and_loaded(rank, size):
    """A state dict goes from shards of normreg's layers into torch's network, and back into other shards."""
    folder = [tempfile.mkdtemp()]
    dist.broadcast_object_list(folder)
    _, ours = sharded(rank, size, MixedPrecisionPolicy())
    ours(torch.randn(3, 2, 3, 6)).mean().backward()
    torch.optim.SGD(ours.parameters(), 0.1).step()
    dcp.save(get_model_state_dict(ours), checkpoint_id=folder[0])
    plain = Network()
    state = plain.state_dict()
    dcp.load(state, checkpoint_id=folder[0])
    _, again = sharded(rank, size, MixedPrecisionPolicy())
    sharded_state = get_model_state_dict(again)
    dcp.load(sharded_state, checkpoint_id=folder[0])
    set_model_state_dict(again, sharded_state)
    for (name, tensor), other in zip(ours.state_dict().items(), again.state_dict().values(), strict=True):
        whole, other = (t.full_tensor() if hasattr(t, "full_tensor") else t for t in (tensor, other))
        if "running" not in name:  # each rank's own: the one that is saved is the first's
            assert torch.equal(whole, other), name
            assert torch.equal(whole, state[name]), name


def frozen_layers_under_fully_shard(rank, size):
    """Frozen before and after they are sharded; the class that FSDP derived stays, and is thawed."""
    for frozen_first in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(normreg.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
        expected = copy.deepcopy(model).eval()
        if frozen_first:
            normreg.freeze_batch_norm(model)
        fully_shard(model[0])
        fully_shard(model)
        if not frozen_first:
            normreg.freeze_batch_norm(model)
        x = torch.randn(3, 4, 5, 5)
        model.train()
        torch.testing.assert_close(model(x), expected(x))
        assert model[0].num_batches_tracked.item() == 0
        assert normreg.unfreeze_batch_norm(model) == 1
        model(x).sum().backward()
        assert model[0].num_batches_tracked.item() == 1
        assert model[0].weight.grad is not None
