"""Fine-tunes a language model with Hugging Face's Trainer, with torch's layers
and with normreg's: prints the loss of each step with both, undoes the
replacement, saves, and loads the checkpoint into an unreplaced model.
The text is Python's own documentation, which every installation has.

    pip install transformers accelerate

    python finetune_transformers.py              # a Llama of 28M, for a GPU
    python finetune_transformers.py --model HuggingFaceTB/SmolLM2-135M
    python finetune_transformers.py --tiny       # seconds on a CPU, no network

A model with dropout draws other masks with normreg's layers, so its losses
differ by noise.
"""

import argparse
import copy
import pydoc_data.topics

import torch
import transformers

import normreg

plain = argparse.RawDescriptionHelpFormatter
parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
parser.add_argument("--model", help="a causal language model, by name or folder")
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--out", default="finetuned", help="folder for the checkpoint")
parser.add_argument("--tiny", action="store_true", help="a model and data for a CPU")
options = parser.parse_args()
text = "\n".join(pydoc_data.topics.topics.values())

if options.model:
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    of_any = transformers.AutoModelForCausalLM
    model = of_any.from_pretrained(options.model, dtype=torch.float32)
    tokens = tokenizer(text, return_tensors="pt", verbose=False).input_ids[0]
else:
    width, layers = (64, 2) if options.tiny else (512, 8)
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 16,
    )
    transformers.set_seed(0)
    model = transformers.LlamaForCausalLM(config)
    tokens = torch.tensor([*text.encode()])
length, batch = (32, 2) if options.tiny else (256, 8)
blocks = tokens[: len(tokens) // length * length].view(-1, length)
data = [dict(input_ids=block, labels=block) for block in blocks]
settings = dict(
    per_device_train_batch_size=batch,
    max_steps=options.steps,
    logging_steps=1,
    save_strategy="no",
    report_to="none",
    disable_tqdm=True,
    bf16=torch.cuda.is_available(),
)


def trained(model):
    """The loss of each step."""
    groups = normreg.parameter_groups(model, weight_decay=0.1)  # of norms and biases 0
    optimizers = torch.optim.AdamW(groups, lr=3e-4), None
    given = transformers.TrainingArguments(options.out, **settings)
    how = dict(train_dataset=data, optimizers=optimizers)
    trainer = transformers.Trainer(model, given, **how)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


torchs, normregs = model, copy.deepcopy(model)
print(normreg.replace(normregs))  # before the Trainer is made
print(normreg.explain(normregs, blocks[:1]))  # whether kernels run
losses = [*zip(trained(torchs), trained(normregs))]
print("\nstep  torch   normreg")
for step, (one, other) in enumerate(losses, 1):
    print(f"{step:4}  {one:.4f}  {other:.4f}")
print(f"largest difference: {max(abs(one - other) for one, other in losses):.1e}")

normreg.restore(normregs)
normregs.save_pretrained(options.out)
loaded = type(model).from_pretrained(options.out).to(model.device)
inputs = blocks[:1].to(model.device)
torch.testing.assert_close(loaded(inputs).logits, normregs(inputs).logits)
print(f"{options.out} holds {type(loaded).__name__} as transformers has it")
