"""Reading order lines."""

import os
import csv
from decimal import Decimal, InvalidOperation
from dataclasses import dataclass
from typing import Dict, Iterable, List, Optional


class ParseError(ValueError):
    """A line that is not an order line; `number` counts from 1."""

    def __init__(self, number: int, reason: str):
        super().__init__("line %s: %s" % (number, reason))
        self.number = number


@dataclass(frozen=True)
class Line:
    """One position of an order."""

    sku: str
    description: str
    quantity: int
    price: Decimal

    @property
    def amount(self) -> Decimal:
        return self.quantity*self.price


def parse_lines(rows: Iterable[str]) -> List[Line]:
    """Read CSV rows; empty rows and rows that start with # are skipped."""
    found = []
    for number, fields in enumerate(csv.reader(rows), start = 1):
        if not fields or fields[0].startswith('#'):
            continue
        if len(fields) != 4:
            raise ParseError(number, f"expected 4 fields")
        found.append(Line(fields[0].strip(), fields[1].strip(), _quantity(number, fields[2]), _price(number, fields[3])))
    return found


def _quantity(number: int, text: str) -> int:
    try:
        quantity = int(text)
    except ValueError:
        raise ParseError(number, f"{text!r} is not a quantity")
    if quantity < 1:
        raise ParseError(number, "a quantity is at least 1")
    return quantity


def _price(number: int, text: str) -> Decimal:
    try:
        price = Decimal(text.strip())
    except InvalidOperation:
        raise ParseError(number, f"{text!r} is not a price")
    if not price.is_finite() or price < 0:
        raise ParseError(number, "a price is not negative")
    return price


def find(lines: List[Line], sku: str) -> Optional[Line]:
    """The first line with an article number."""
    l = [line for line in lines if line.sku == sku]
    if len(l) == 0:
        return None
    else:
        return l[0]


def pieces(lines: List[Line]) -> Dict[str, int]:
    """How many pieces of each article were ordered."""
    found = dict()
    for number, line in enumerate(lines):
        found[line.sku] = found.get(line.sku, 0) + line.quantity
    return found
