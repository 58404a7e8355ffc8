"""Trains a timm CNN in channels_last with BatchNorm, activations and residuals
fused, beside timm's own: prints what changed, the loss of each step with both,
and by how much running statistics differ. Then it freezes BatchNorm, as for
fine-tuning on small batches. Images are random.

    pip install timm

    python timm_channels_last.py                 # ResNet-50, for a GPU
    python timm_channels_last.py --model convnext_tiny --batch 64
    python timm_channels_last.py --tiny          # seconds on a CPU
"""

import argparse
import copy

import timm
import torch

import normreg

plain = argparse.RawDescriptionHelpFormatter
parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
parser.add_argument("--model", default="resnet50", help="a name of timm.list_models()")
parser.add_argument("--batch", type=int, default=32)
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--tiny", action="store_true", help="a small network for a CPU")
options = parser.parse_args()
device = "cuda" if torch.cuda.is_available() else "cpu"
if options.tiny:
    options.model, options.batch, options.steps, size = "test_resnet", 4, 3, 64
else:
    size = 224

torch.manual_seed(0)
layout = dict(device=device, memory_format=torch.channels_last)
model = timm.create_model(options.model, num_classes=10).to(**layout)
images = torch.randn(options.batch, 3, size, size).to(**layout)
labels = torch.randint(10, (options.batch,), device=device)


def trained(model):
    """The loss of each step."""
    groups = normreg.parameter_groups(model, weight_decay=1e-4)
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9)
    losses = []
    for _ in range(options.steps):
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


timms, normregs = model, copy.deepcopy(model)
print(normreg.replace(normregs, fuse=True, example_inputs=images))
losses = [*zip(trained(timms), trained(normregs))]
print("\nstep  timm    normreg")
for step, (one, other) in enumerate(losses, 1):
    print(f"{step:4}  {one:.4f}  {other:.4f}")
print(f"largest difference: {max(abs(one - other) for one, other in losses):.1e}")
pairs = zip(timms.buffers(), normregs.buffers())
statistics = max((one - other).abs().max().item() for one, other in pairs)
print(f"largest difference of running statistics: {statistics:.1e}")

normreg.freeze_batch_norm(normregs)
before = [buffer.clone() for buffer in normregs.buffers()]
trained(normregs)
assert all(map(torch.equal, before, normregs.buffers()))
print("frozen: running statistics are as they were")
