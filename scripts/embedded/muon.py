"""Muon for the matrices inside the blocks, Adam for all else (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
STEPS = 5


class Muon(torch.optim.Optimizer):
    """Momentum, its matrix made orthogonal before the step; a kernel counts as one row an output channel."""

    def __init__(
        self, params: list[nn.Parameter], lr: float = 0.02, momentum: float = 0.95, decay: float = 0.01
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                average = state.setdefault("momentum", torch.zeros_like(param))
                average.lerp_(param.grad, 1 - group["momentum"])
                update = orthogonal(param.grad.lerp(average, group["momentum"]).flatten(1)).view_as(param)
                rate = group["lr"] * max(1, param.shape[0] / param[0].numel()) ** 0.5
                param.mul_(1 - group["lr"] * group["decay"]).add_(update, alpha=-rate)


def orthogonal(matrix: Tensor) -> Tensor:
    """Newton and Schulz's iteration on the smaller Gram matrix, which all its polynomials commute with."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-12)
    gram = wide @ wide.T
    one = torch.eye(len(gram), device=matrix.device)
    product = one
    a, b, c = NEWTON_SCHULZ
    for _ in range(STEPS):
        polynomial = a * one + b * gram + c * gram @ gram
        product = polynomial @ product
        gram = polynomial @ gram @ polynomial
    wide = product @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


def optimisers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Matrices of the blocks to Muon; token vectors, modulation, ends, norms and biases to Adam."""
    matrices, vectors, rest = [], [], []
    for name, param in model.named_parameters():
        if name.startswith("embed_tokens"):
            vectors.append(param)
        elif "_blocks." in name and param.ndim == 2 and "mod" not in name:
            matrices.append(param)
        else:
            rest.append(param)
    adam = torch.optim.Adam(
        [{"params": vectors, "lr": 6e-3}, {"params": rest, "lr": 1.5e-3}], betas=(0.9, 0.97)
    )
    return [Muon(matrices), adam]
