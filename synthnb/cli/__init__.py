"""The command line: `synthnb` in a terminal."""
from .commands import app as app
