"""The parts of a layer that are neither matrix products nor norms, each with its gradient: rotary embedding and activation."""

import torch


def rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, out: torch.Tensor) -> None:
    """x [n, heads · width], rotated by its positions, into out [kv, n, group, width]."""
    heads = x.view(len(x), out.shape[0], out.shape[2], out.shape[3]).transpose(0, 1)
    (left, right), (low, high) = heads.chunk(2, -1), out.chunk(2, -1)
    torch.mul(left, cosine, out=low)
    low.addcmul_(right, sine, value=-1)
    torch.mul(right, cosine, out=high)
    high.addcmul_(left, sine)


def rotate_back(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, out: torch.Tensor) -> None:
    """The gradient of `rotate`: x [kv, n, group, width] into out [n, kv, group, width]."""
    (left, right), (low, high) = x.chunk(2, -1), out.transpose(0, 1).chunk(2, -1)
    torch.mul(left, cosine, out=low)
    low.addcmul_(right, sine)
    torch.mul(right, cosine, out=high)
    high.addcmul_(left, sine, value=-1)


def activate(gelu: bool, gates: torch.Tensor, gate: torch.Tensor, out: torch.Tensor) -> None:
    """Writes activation(gate) into `gate` [n, width] and that · up into `out` [n, width]; gates [n, 2 · width] holds both."""
    before, up = gates.chunk(2, -1)
    if gelu:
        torch.ops.aten.gelu.out(before, approximate="tanh", out=gate)
    else:
        torch.ops.aten.silu.out(before, out=gate)
    torch.mul(gate, up, out=out)


def activate_backward(gelu: bool, gates: torch.Tensor, gate: torch.Tensor, upstream: torch.Tensor) -> None:
    """Overwrites gates [n, 2 · width] with the gradients of gate and up. `gate` holds activation(gate); it and `upstream`
    [n, width] are overwritten too: no memory is allocated."""
    before, up = gates.chunk(2, -1)
    gate.mul_(upstream)
    upstream.mul_(up)
    up.copy_(gate)
    if gelu:
        torch.ops.aten.gelu_backward.grad_input(upstream, before, approximate="tanh", grad_input=before)
    else:
        torch.ops.aten.silu_backward.grad_input(upstream, before, grad_input=before)
