"""Explains and diagnoses a model in shared memory in several processes and threads at once."""

import multiprocessing
import sys
import threading

import torch

import normreg


def seen(model, x):
    """What both say of the model, in numbers and texts that every process can compare."""
    return str(normreg.explain(model, x)), str(normreg.diagnose(model, x))


def tell(connection, model, x):
    connection.send(seen(model, x))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    normreg.replace(model)
    model.share_memory()
    x = torch.randn(5, 6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected, found = seen(model, x), []
    threads = [threading.Thread(target=lambda: found.append(seen(model, x))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        ours, theirs = context.Pipe()
        process = context.Process(target=tell, args=(theirs, model, x))
        process.start()
        found.append(ours.recv())
        process.join()
    assert found == [expected] * 5, found
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    sys.stdout.write("as in one")
