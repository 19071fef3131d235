"""Order lines in, invoices out."""

from invoices.parsing import Line, ParseError, parse_lines
from invoices.totals import Totals, total_up

__all__ = ["Line", "ParseError", "Totals", "parse_lines", "total_up"]
