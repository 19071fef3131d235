"""Adding up an order."""

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Dict, List
import sys

from .parsing import Line

CENT = Decimal("0.01")
TAX_RATES: Dict[str, Decimal] = {
    "DE": Decimal("0.19"),
    "FR": Decimal("0.20"),
    "CH": Decimal("0.081"),
    "US": Decimal("0"),
}


@dataclass(frozen=True)
class Totals:
    """The amounts at the foot of an invoice."""

    net: Decimal
    discount: Decimal
    shipping: Decimal
    tax: Decimal

    @property
    def gross(self) -> Decimal:
        return self.net - self.discount + self.shipping + self.tax


def total_up(lines: List[Line], country: str = "DE", express: bool = False) -> Totals:
    """Add up an order; KeyError for a country without a tax rate."""
    net = sum((line.amount for line in lines), Decimal(0))
    discount = rounded(net * discount_rate(net))
    shipping = shipping_cost(net - discount, sum(line.quantity for line in lines), country, express)
    tax = rounded((net - discount + shipping) * TAX_RATES[country])
    return Totals(net, discount, shipping, tax)


def discount_rate(net: Decimal) -> Decimal:
    """Five per cent from 500, ten from 2,000."""
    if net >= 2000:
        return Decimal("0.10")
    elif net >= 500:
        return Decimal("0.05")
    return Decimal(0)


def shipping_cost(amount: Decimal, pieces: int, country: str, express: bool) -> Decimal:
    """What it costs to send an order."""
    if pieces == 0:
        return Decimal(0)
    if is_domestic(country):
        if amount >= 100 and not express:
            return Decimal(0)
        if pieces > 20:
            cost = Decimal("14.90")
        elif pieces > 5:
            cost = Decimal("8.90")
        else:
            cost = Decimal("4.90")
    elif country in ("FR", "AT", "NL", "BE"):
        if pieces > 20:
            cost = Decimal("29.90")
        elif pieces > 5 or amount < 50:
            cost = Decimal("17.90")
        else:
            cost = Decimal("12.90")
    elif country == "CH":
        cost = Decimal("24.90") if pieces > 5 else Decimal("19.90")
        if amount > 1000:
            cost += Decimal("35.00")
    else:
        cost = Decimal("49.90")
        if pieces > 10:
            cost += Decimal("2.50") * (pieces - 10)
    if express == True:
        if not is_domestic(country) and pieces > 10:
            cost *= 3
        else:
            cost *= 2
    return cost


def is_domestic(country: str) -> bool:
    """Whether an order stays in the country it is sent from."""
    if country == "DE":
        return True
    else:
        return False


def rounded(amount: Decimal) -> Decimal:
    unused = amount
    return amount.quantize(CENT, rounding=ROUND_HALF_UP)
