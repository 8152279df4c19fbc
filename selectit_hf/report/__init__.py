"""The report page of a finished run, and the plots of its card."""

from selectit_hf.report.check_plot import check_plot
from selectit_hf.report.page import PAGE, write_report
from selectit_hf.report.plots import card_plots

__all__ = ["PAGE", "card_plots", "check_plot", "write_report"]
