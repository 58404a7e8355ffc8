"""The worked example of the course notes that the project began from, number by number.

A is a batch of two examples, three features of four positions each; the second is twice the first.
"""

import pytest
import torch

import normreg


@pytest.fixture
def a(device):
    first = torch.arange(1.0, 13.0, device=device).view(3, 4)
    return torch.stack([first, 2 * first])


def test_the_example_is_the_one_in_the_notes(a):
    assert a.shape == (2, 3, 4)
    assert a[0].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
    assert torch.equal(a[1], 2 * a[0])


def test_layer_norm_of_example_1_over_its_features(a):
    """LayerNorm's means are 5, 6, 7, 8, and its variance is 10.67 in each column."""
    columns = a[0].t().contiguous()  # [4 positions, 3 features]
    mean = torch.tensor([[5.0], [6.0], [7.0], [8.0]], device=a.device)
    variance = 10.67
    y = normreg.functional.layer_norm(columns, (3,), eps=0.0)
    torch.testing.assert_close(y, (columns - mean) / variance**0.5, rtol=2e-4, atol=1e-6)
    torch.testing.assert_close(y[0].tolist(), [-1.2247, 0.0, 1.2247], rtol=0, atol=5e-5)
    # weight and bias set to the notes' statistics give the example back
    weight = torch.full((3,), (32 / 3) ** 0.5, device=a.device)
    for column, m in zip(columns, (5.0, 6.0, 7.0, 8.0), strict=True):
        bias = torch.full((3,), m, device=a.device)
        torch.testing.assert_close(normreg.functional.layer_norm(column, (3,), weight, bias, eps=0.0), column)


def test_batch_norm_of_feature_1_over_the_batch(a):
    """BatchNorm's means are 1.5, 3, 4.5, 6, its variances 0.25, 1, 2.25, 4, position by position."""
    feature = a[:, 0].contiguous()  # [2 examples, 4 positions]
    module = normreg.BatchNorm1d(4, momentum=1.0, device=a.device)
    y = module(feature)
    assert module.running_mean.tolist() == [1.5, 3.0, 4.5, 6.0]
    # the running variance is unbiased: n / (n - 1) = 2 times the notes' variance
    assert (module.running_var / 2).tolist() == [0.25, 1.0, 2.25, 4.0]
    torch.testing.assert_close(
        y, torch.tensor([[-1.0], [1.0]], device=a.device).expand(2, 4), rtol=0, atol=3e-5
    )


def test_batch_norm_of_feature_1_in_evaluation_uses_what_was_tracked(a):
    feature = a[:, 0].contiguous()
    mean = torch.tensor([1.5, 3.0, 4.5, 6.0], device=a.device)
    variance = torch.tensor([0.25, 1.0, 2.25, 4.0], device=a.device)
    y = normreg.functional.batch_norm(feature, mean, variance, eps=1e-12)
    torch.testing.assert_close(y, torch.tensor([[-1.0], [1.0]], device=a.device).expand(2, 4))
