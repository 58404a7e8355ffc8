"""The scripts and the notebook of docs/examples/, run on tiny data as a user would from another folder."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import programs
import pytest

EXAMPLES = programs.ROOT / "docs" / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


def run(script, *arguments, folder, launcher=()):
    """The completed process of a script, with the kernels interpreted and no network."""
    environment = dict(
        os.environ,
        PYTHONPATH=os.pathsep.join(map(str, (programs.ROOT, programs.TESTS))),
        TRITON_INTERPRET="1",
        HF_HUB_OFFLINE="1",
    )
    environment.pop("NORMREG_CPU_KERNELS", None)
    command = [sys.executable, *(launcher or [str(programs.path_of("script"))]), str(script), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def printed(name, *arguments, folder, needs=(), launcher=()):
    """What a script prints; skips where a package that it needs is not installed."""
    for package in needs:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    done = run(EXAMPLES / f"{name}.py", *arguments, folder=folder, launcher=launcher)
    assert done.returncode == 0, done.stderr
    return done.stdout


def losses(output):
    """The two losses of each step in a table that a script printed."""
    rows = re.findall(r"^ *(\d+) +(\d+\.\d+) +(\d+\.\d+)$", output, re.MULTILINE)
    assert [int(step) for step, _, _ in rows] == [*range(1, len(rows) + 1)]
    return [(float(one), float(other)) for _, one, other in rows]


def difference(output, what=""):
    (found,) = re.findall(rf"^largest difference{what}: (.*)$", output, re.MULTILINE)
    return float(found)


def test_finetuning_of_transformers(tmp_path):
    """In float32 and without dropout the two curves differ by rounding, of losses near 5.5."""
    needs = "transformers", "accelerate"
    output = printed("finetune_transformers", "--tiny", "--steps", "4", folder=tmp_path, needs=needs)
    assert output.startswith("5 layers changed")
    assert {"LlamaRMSNorm", "llama_rms_norm"} <= {*re.findall(r"\w+", output)}
    assert "5 calls: 5 kernel (100 %)" in output
    assert len(losses(output)) == 4
    assert difference(output) < 1e-5
    assert output.endswith("finetuned holds LlamaForCausalLM as transformers has it\n")
    assert (tmp_path / "finetuned" / "model.safetensors").exists()


def test_timm_in_channels_last(tmp_path):
    needs = "timm", "huggingface_hub"
    output = printed("timm_channels_last", "--tiny", folder=tmp_path, needs=needs)
    assert "15     torch.nn.BatchNorm2d  normreg.BatchNorm2d" in output
    assert re.search(r"^5 +bn1 -> act1 ", output, re.MULTILINE)
    assert re.search(r"^2 +downsample.2 -> \+ -> act2 ", output, re.MULTILINE)
    assert len(losses(output)) == 3
    assert difference(output) < 1e-4
    assert difference(output, " of running statistics") < 1e-4
    assert output.endswith("frozen: running statistics are as they were\n")


def test_diffusion_block(tmp_path):
    output = printed("diffusion_block", "--tiny", folder=tmp_path)
    assert output.startswith("4 calls: 4 kernel (100 %)")
    first, last = map(float, re.findall(r"^loss of step \d+: (.*)$", output, re.MULTILINE))
    assert last < 0.7 * first
    assert difference(output, " from torch's operators") < 1e-5


def test_synchronised_statistics(tmp_path):
    launcher = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"
    output = printed("ddp_sync_batch_norm", folder=tmp_path, launcher=launcher)
    assert output.startswith("2 calls: 2 kernel (100 %)")
    assert "\n2 processes, " in output
    assert len(losses(output)) == 5
    assert all(one == pytest.approx(other, rel=1e-4) for one, other in losses(output))
    assert difference(output, " of parameters") < 1e-5
    assert difference(output, " of running statistics") < 1e-5


def test_gradients_of_a_layer_of_ones_own(tmp_path):
    output = printed("gradcheck_own_layer", folder=tmp_path)
    assert output.count("first and second derivatives are right") == 2
    assert output.count("(100 %), 0 torch") == 2


def test_a_wrong_backward_is_found(tmp_path):
    source = (EXAMPLES / "gradcheck_own_layer.py").read_text()
    other, *_, own = re.findall(r"^check.*\n", source, re.MULTILINE)
    wrong = source.replace("return Centred.apply(dy)", "return dy").replace(other, "")
    assert own.startswith("check(CentredNorm(")
    (tmp_path / "wrong.py").write_text(wrong)
    done = run(tmp_path / "wrong.py", folder=tmp_path)
    assert done.returncode == 1
    assert "torch.autograd.gradcheck.GradcheckError: Jacobian mismatch" in done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_each_script_says_how_to_run_it(script):
    source, index = script.read_text(), (EXAMPLES / "index.md").read_text()
    page = script.with_suffix(".md").read_text()
    docstring = source.split('"""')[1]
    assert re.search(rf"^    (torchrun|TRITON_INTERPRET=1|python)\b.* {script.name}", docstring, re.MULTILINE)
    lines = source.splitlines()
    assert len(lines) <= 100
    assert [line for line in lines if len(line) > 88] == []
    assert f"]({script.stem}.md)" in index
    assert f"{{literalinclude}} {script.name}\n" in page
    told = page.split("```")[1]
    assert [line for line in told.strip().splitlines() if line.split("  #")[0].strip() not in docstring] == []


@pytest.fixture(scope="module")
def notebook():
    """(stored outputs, today's outputs) of each cell of code."""
    pytest.importorskip("matplotlib")
    path = EXAMPLES / "first_steps.ipynb"
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    done = run(path, folder=programs.ROOT, launcher=[str(programs.path_of("notebook"))])
    assert done.returncode == 0, done.stderr
    return [*zip([cell["outputs"] for cell in cells], json.loads(done.stdout), strict=True)]


def words(text):
    """The words of text or HTML, with numbers of two digits, which rounding decides, as numbers."""
    split = re.split(r"[\s<>]+", text)
    return [float(word) if re.fullmatch(r"-?\d\.\de[+-]\d\d", word) else word for word in split]


def assert_same(stored, today):
    for one, other in zip(words("".join(stored)), words(today), strict=True):
        assert one == (pytest.approx(other, rel=0.1, abs=1e-5) if isinstance(other, float) else other)


def test_the_notebooks_outputs_are_todays(notebook):
    kinds = set()
    for stored, today in notebook:
        for output in stored:
            data = output.get("data", {})
            kinds |= {*data, output.get("name")}
            if output["output_type"] == "stream":
                assert_same(output["text"], today["printed"])
            elif "image/png" not in data:
                assert_same(data["text/plain"], today["text"])
            if "text/html" in data:
                assert_same(data["text/html"], today["html"])
    assert kinds >= {"text/html", "image/png", "stdout"}


def test_the_notebook_holds_nothing_of_a_machine():
    text = (EXAMPLES / "first_steps.ipynb").read_text()
    assert len(text) < 200_000
    assert not re.search(r'"/(home|root|tmp|work|usr)/|iopub|"version": "', text)
