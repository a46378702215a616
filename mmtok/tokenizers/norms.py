"""Group norm that also takes groups of a single value, as pictures of a few pixels make them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """torch's class refuses a single value, as if it trained; here it becomes the bias."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) of any sides."""
        made: Tensor = torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        return made


def take_single_values(network: nn.Module) -> None:
    """Turn the group norms of a stock network that was just built into this one."""
    for part in network.modules():
        if type(part) is nn.GroupNorm:
            part.__class__ = GroupNorm
