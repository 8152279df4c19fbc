"""Matrix products of decoder layers in 8-bit floats (e4m3), to measure what they would bring.

Weights are scaled once for each output, activations for each token as they come. Not part of the
package.
"""

from typing import Any

import torch
from torch import Tensor, nn

LARGEST = torch.finfo(torch.float8_e4m3fn).max


def scaled(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(n, m) as 8-bit floats, and the scale (n, 1) of each row in float32."""
    scale = rows.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12) / LARGEST
    return (rows.float() / scale).to(torch.float8_e4m3fn), scale


_scaled_in_one_kernel = torch.compile(scaled, dynamic=True)


class Float8Linear(nn.Module):
    """A linear layer whose weights and activations are 8-bit floats."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = scaled(linear.weight.detach())
        self.register_buffer("weight8", weight)
        self.register_buffer("scale", scale.T.contiguous())
        self.bias = linear.bias

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., m) to (..., outputs), in the dtype given."""
        rows, scale = _scaled_in_one_kernel(hidden.reshape(-1, hidden.shape[-1]))
        product = torch._scaled_mm(
            rows, self.weight8.T, scale, self.scale, out_dtype=hidden.dtype, use_fast_accum=True
        )
        product = product if self.bias is None else product + self.bias
        return product.reshape(*hidden.shape[:-1], -1)


def to_float8(model: Any) -> None:
    """Replace the linear layers of all decoder layers; the head stays."""
    for layer in model.model.layers:
        for name, module in list(layer.named_modules()):
            if type(module) is nn.Linear:
                layer.set_submodule(name, Float8Linear(module))
