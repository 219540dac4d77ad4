"""The parts of a layer that are neither products nor norms, each with its gradient: rotary embedding and activation."""

import torch


def rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, out: torch.Tensor) -> None:
    """x [n, heads · width], turned by its positions, into out [shared, n, group, width]."""
    heads = x.view(len(x), out.shape[0], out.shape[2], out.shape[3]).transpose(0, 1)
    (left, right), (low, high) = heads.chunk(2, -1), out.chunk(2, -1)
    torch.mul(left, cosine, out=low)
    low.addcmul_(right, sine, value=-1)
    torch.mul(right, cosine, out=high)
    high.addcmul_(left, sine)


def rotate_back(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, out: torch.Tensor) -> None:
    """The gradient of `rotate`: x [shared, n, group, width] into out [n, shared, group, width]."""
    (left, right), (low, high) = x.chunk(2, -1), out.transpose(0, 1).chunk(2, -1)
    torch.mul(left, cosine, out=low)
    low.addcmul_(right, sine)
    torch.mul(right, cosine, out=high)
    high.addcmul_(left, sine, value=-1)


def activate(gelu: bool, gates: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Writes activation(gate) · up into out [n, width]; gates [n, 2 · width] holds both. Returns activation(gate)."""
    gate, up = gates.chunk(2, -1)
    functional = torch.nn.functional
    active = functional.gelu(gate, approximate="tanh") if gelu else functional.silu(gate)
    torch.mul(active, up, out=out)
    return active


def activate_backward(gelu: bool, gates: torch.Tensor, active: torch.Tensor, upstream: torch.Tensor) -> None:
    """Puts the gradients of gate and up in the place of gates [n, 2 · width]."""
    gate, up = gates.chunk(2, -1)
    slope = upstream * up
    torch.mul(upstream, active, out=up)
    if gelu:
        gate.copy_(torch.ops.aten.gelu_backward(slope, gate, approximate="tanh"))
    else:
        gate.copy_(torch.ops.aten.silu_backward(slope, gate))
