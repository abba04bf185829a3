"""Run a sweep file: `python -m helpers.sweep sweeps/tiny.yaml`."""

from helpers.sweep.runner import main

main()
