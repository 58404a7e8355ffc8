"""Processes that tests start have no GPU and run kernels in the interpreter, beside a GPU, too."""

import os
import subprocess
import sys
from pathlib import Path

from support.processes import ENVIRONMENT, exit_status

ROOT = Path(__file__).parents[2]
# in an environment as beside a GPU
BESIDE_A_GPU = """
import sys
from support.processes import exit_status
seen = '''
import os, torch
from normreg.kernels import launch
from normreg.functional import layer_norm
assert launch.INTERPRET
assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
assert not torch.cuda.is_available()
assert layer_norm(torch.tensor([[1.0, 3.0]]), (2,), eps=0.0).tolist() == [[-1.0, 1.0]]
'''
assert exit_status(seen, sys.argv[1], sys.argv[2]) == 0
"""


def test_processes_have_the_interpreter_beside_a_gpu(tmp_path):
    plain = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    log = tmp_path / "log"
    done = subprocess.run(
        [sys.executable, "-c", BESIDE_A_GPU, str(ROOT), str(log)],
        env=plain | {"CUDA_VISIBLE_DEVICES": "0"},
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr + log.read_text()


NESTED = """
import os, sys
sys.path.insert(0, "tests")
from support.processes import exit_status
same_server = f"import os; assert os.getppid() == {os.getppid()}"
assert exit_status(same_server, ".", sys.argv[0]) == 0
"""


def test_processes_of_processes_come_from_the_same_server(tmp_path):
    log = tmp_path / "log"
    source = NESTED.replace("sys.argv[0]", repr(str(tmp_path / "inner")))
    assert exit_status(source, ROOT, log) == 0, log.read_text()
