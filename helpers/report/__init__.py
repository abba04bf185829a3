"""The five reports: their rows run again, judged in a ledger, shown on one page."""
