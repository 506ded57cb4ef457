"""How much it costs a network to quantize one group to one width: several answers."""

from __future__ import annotations

from collections.abc import Callable

from mixed_bit.metrics import fisher, hessian, kl, sqnr
from mixed_bit.metrics.subject import Prices, Subject

# Metrics that ask the network alone; the others need the importances of orthogonality.
PLAIN: dict[str, Callable[[Subject], Prices]] = {
    "sqnr": sqnr.price,
    "fisher": fisher.price,
    "kl": kl.price,
    "hessian": hessian.price,
}
METRICS = ("orm", *PLAIN, "orm_sqnr")

ORTHOGONAL = ("orm", "orm_sqnr")
USES_LABELS = ("fisher", "hessian")

__all__ = ["METRICS", "ORTHOGONAL", "PLAIN", "USES_LABELS", "Prices", "Subject"]
