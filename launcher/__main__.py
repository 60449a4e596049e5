"""`python -m launcher`: the same commands for job scripts."""

from data_shards.base.errors import run
from launcher.cli import app

if __name__ == "__main__":
    run(app)
