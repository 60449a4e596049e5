"""`python -m data_shards`: the group `smdt shards` for job scripts."""

from data_shards.base.errors import run
from data_shards.cli import app

if __name__ == "__main__":
    run(app)
