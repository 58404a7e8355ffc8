"""Makes a graph run as eager mode does: without operators' dispatch and seeds' launches."""

import operator
from typing import Any

from torch import Tensor
from torch._higher_order_ops.wrap import tag_activation_checkpoint
from torch.fx import GraphModule, Node
from torch.utils.checkpoint import checkpoint

from normreg.ops import seed
from normreg.ops.operation import OPERATIONS


def _checkpointed(body: GraphModule, *inputs: Any, **options: Any) -> Any:
    """What Dynamo's operator for a checkpoint stands for; itself, it draws other masks again."""
    if "_checkpoint_context_fn" in body.meta:
        options["context_fn"] = body.meta["_checkpoint_context_fn"]
    # buffers, which the body may update, are not among the inputs that checkpoint holds to be unchanged
    places = [i for i, x in enumerate(inputs) if isinstance(x, Tensor) and x.requires_grad] or [0]

    def run(*given: Any) -> Any:
        return body(*(dict(enumerate(inputs)) | dict(zip(places, given))).values())

    return checkpoint(run, *[inputs[i] for i in places], **options | {"use_reentrant": False})


def as_eager(graph_module: GraphModule) -> GraphModule:
    """Changes the graph, and those of checkpoints inside, in place."""
    for body in graph_module.modules():
        if isinstance(body, GraphModule):
            for node in [*body.graph.nodes]:
                _lower(node)
            body.recompile()
    return graph_module


def _lower(node: Node) -> None:
    target: Any = node.target
    if target is tag_activation_checkpoint:
        node.target = _checkpointed
    elif target is seed.draw_seed and all(user.target in OPERATIONS for user in node.users):
        node.target = seed.draw
    elif target in OPERATIONS:
        results = [user for user in node.users if user.target is operator.getitem and user.args[1] == 0]
        if OPERATIONS[target].returned == 0:  # which returns the first result by itself
            if len(results) < len(node.users):
                return
            for result in results:
                result.replace_all_uses_with(node)
                result.graph.erase_node(result)
        node.target = OPERATIONS[target]
