"""Prices (data files, a source per row) and accounts (tally x prices): the paper's alone, and the whole sheet."""

from .accounts import Comparison, EnergySheet, energy_sheet
from .paper import PaperAccount, paper_account
from .prices import Assumptions, PriceTable, load_prices

__all__ = [
    "Assumptions",
    "Comparison",
    "EnergySheet",
    "PaperAccount",
    "PriceTable",
    "energy_sheet",
    "load_prices",
    "paper_account",
]
