"""Prices (data files, a source per row) and accounts (tally x prices)."""

from .paper import PaperAccount, paper_account
from .prices import PriceTable, load_prices

__all__ = ["PaperAccount", "PriceTable", "load_prices", "paper_account"]
