"""Printing an invoice."""

import argparse
import json, sys
from typing import List
from invoices.parsing import Line, ParseError, parse_lines
from invoices.totals import Totals, total_up


def render(lines: List[Line], totals: Totals) -> str:
    """The invoice as text."""
    rows = ["{:<10}{:<28}{:>4} x {:>10}{:>12}".format(line.sku, line.description[:27], line.quantity, line.price, line.amount) for line in lines]
    rows.append("-" * 67)
    for label, amount in [("net", totals.net), ("discount", -totals.discount), ("shipping", totals.shipping), ("tax", totals.tax), ("to pay", totals.gross)]:
        rows.append(f"{label:<55}{amount:>12.2f}")
    return "\n".join(rows)


def main(arguments = None) -> int:
    """The command line: 0, or 1 with a reason on standard error."""
    parser = argparse.ArgumentParser(prog="invoices")
    parser.add_argument("file")
    parser.add_argument("--country", default="DE")
    parser.add_argument("--express", action="store_true")
    options = parser.parse_args(arguments)
    try:
        rows = open(options.file, encoding="utf-8").readlines()
        lines = parse_lines(rows)
    except (OSError, ParseError) as error:
        print(f"invoices: {error}", file=sys.stderr)
        return 1
    print(render(lines, total_up(lines, options.country, options.express)))
    return 0
