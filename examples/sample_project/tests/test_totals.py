from decimal import Decimal

import pytest

from invoices import parse_lines, total_up
from invoices.report import main
from invoices.totals import discount_rate, shipping_cost


def test_adds_up_an_order():
    totals = total_up(parse_lines(["A1,Desk,2,300.00", "B2,Lamp,1,49.90"]))
    assert totals.net == Decimal("649.90")
    assert totals.discount == Decimal("32.50")
    assert totals.shipping == 0
    assert totals.tax == Decimal("117.31")
    assert totals.gross == Decimal("734.71")


@pytest.mark.parametrize(("net", "rate"), [(499, "0"), (500, "0.05"), (2000, "0.10")])
def test_discount_grows_with_the_order(net, rate):
    assert discount_rate(Decimal(net)) == Decimal(rate)


@pytest.mark.parametrize(
    ("amount", "pieces", "country", "express", "cost"),
    [
        (20, 1, "DE", False, "4.90"),
        (200, 1, "DE", False, "0"),
        (200, 1, "DE", True, "9.80"),
        (40, 2, "FR", False, "17.90"),
        (1200, 2, "CH", False, "54.90"),
        (80, 12, "US", True, "164.70"),
    ],
)
def test_shipping_depends_on_the_way(amount, pieces, country, express, cost):
    assert shipping_cost(Decimal(amount), pieces, country, express) == Decimal(cost)


def test_an_unknown_country_is_refused():
    with pytest.raises(KeyError):
        total_up([], country="XX")


def test_prints_an_invoice(tmp_path, capsys):
    orders = tmp_path / "orders.csv"
    orders.write_text("A1,Paper clips,3,0.50\n")
    assert main([str(orders)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["to", "pay", "7.62"]


def test_a_missing_file_is_an_error_of_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "none.csv")]) == 1
    assert "none.csv" in capsys.readouterr().err
