"""The report of a results directory: CSV, table, figures and ``report.html``."""
