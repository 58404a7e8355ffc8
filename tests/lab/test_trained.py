"""Real models that train on compiled code, beside their originals on torch.nn's layers."""

import pytest
from support.hugging_face import assert_trains, built, imported

TRANSFORMERS = ("BertForMaskedLM", "GPT2LMHeadModel", "LlamaForCausalLM")
CONVOLUTIONAL = ("ConvNextForImageClassification", "ResNetForImageClassification")


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("transformers")
    with imported() as package:
        yield package


@pytest.mark.parametrize("name", [*TRANSFORMERS, *CONVOLUTIONAL])
def test_two_steps(transformers, device, name):
    model, inputs = built(transformers, name, device)
    assert_trains(model, inputs, steps=2)
