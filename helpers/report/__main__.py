"""Write the report: `python -m helpers.report`."""

from helpers.report.page import main

main()
