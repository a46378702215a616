"""Count FLOPs while a model runs, and list every operation that has no formula.

The counter is torch's FlopCounterMode with formulas added for the operations it takes for free
(formulas.py). Convention: 1 multiply-accumulate = 2 FLOPs; matrix products, convolutions and
attention products; dense attention. Counting slows a run down: never time in the same pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mmtok.accounting.formulas import FREE_OPS, extra_formulas
from mmtok.accounting.scopes import Scopes


class FlopCount:
    """What `count_flops` counted; complete once its `with` block has ended.

    Attributes:
        uncounted: calls per dispatched operation without a formula, except those of FREE_OPS.
    """

    def __init__(self) -> None:
        self.uncounted: dict[str, int] = {}
        self._counter = FlopCounterMode(display=False, custom_mapping=extra_formulas())
        self._scopes = Scopes(self._counter.get_total_flops)

    def stage(self, name: str) -> AbstractContextManager[None]:
        """FLOPs counted inside belong to stage `name`."""
        return self._scopes.stage(name)

    @property
    def total(self) -> int:
        """FLOPs of everything."""
        return self._counter.get_total_flops()

    @property
    def by_op(self) -> dict[str, int]:
        """FLOPs per operation, such as {"aten.mm": 1200}."""
        return {str(op): n for op, n in self._counter.get_flop_counts().get("Global", {}).items()}

    @property
    def by_stage(self) -> dict[str, int]:
        """FLOPs per stage; what ran outside any stage is in `total` only."""
        out: Counter[str] = Counter()
        for name, start, end in self._scopes.spans:
            out[name] += end - start
        return dict(out)


class _Witness(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operations that reach the backend without a formula."""

    supports_higher_order_operators = True

    def __init__(self, known: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known = known
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        packet = getattr(func, "_overloadpacket", func)
        if packet not in self.known and str(packet) not in FREE_OPS:
            self.seen[str(packet)] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def count_flops() -> Iterator[FlopCount]:
    """Count the FLOPs of what runs inside the `with` block.

    Yields:
        A FlopCount: `total`, `by_op`, `by_stage` (enter `count.stage(name)` scopes), `uncounted`.
    """
    count = FlopCount()
    # Entered first, the witness sits below the counter and sees the decomposed operations.
    witness = _Witness(count._counter.flop_registry)
    with witness, count._counter:
        yield count
    count.uncounted = dict(witness.seen)
