"""`python -m data_shards`: the group `smdt shards` for job scripts."""

from data_shards.cli import app
from data_shards.errors import run

if __name__ == "__main__":
    run(app)
