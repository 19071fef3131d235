from decimal import Decimal

import pytest

from invoices import Line, ParseError, parse_lines
from invoices.parsing import find, pieces


def test_reads_a_line():
    assert parse_lines(["A1,Paper clips,3,0.50"]) == [Line("A1", "Paper clips", 3, Decimal("0.50"))]


def test_skips_empty_lines_and_comments():
    assert parse_lines(["# sku,description", "", "A1,Clips,1,1"])[0].sku == "A1"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("A1,Clips,1", "expected 4 fields"),
        ("A1,Clips,many,1", "'many' is not a quantity"),
        ("A1,Clips,0,1", "at least 1"),
        ("A1,Clips,1,free", "'free' is not a price"),
        ("A1,Clips,1,-2", "not negative"),
    ],
)
def test_says_what_is_wrong_with_a_line(row, reason):
    with pytest.raises(ParseError, match=reason) as caught:
        parse_lines(["A0,Clips,1,1", row])
    assert caught.value.number == 2


def test_finds_a_line_by_article_number():
    lines = parse_lines(["A1,Clips,1,1", "B2,Pens,2,3"])
    assert find(lines, "B2") is lines[1]
    assert find(lines, "C3") is None


def test_counts_the_pieces_of_an_article():
    assert pieces(parse_lines(["A1,Clips,1,1", "B2,Pens,2,3", "A1,Clips,4,1"])) == {"A1": 5, "B2": 2}
