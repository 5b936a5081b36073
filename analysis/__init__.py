"""Analysis of run records: tables and figures."""
