"""`python -m asu`."""

from asu.cli import app

app()
