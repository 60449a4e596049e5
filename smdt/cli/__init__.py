"""The command `smdt`: one file for each group of commands."""


def main() -> None:
    """Run `smdt` as a program."""
    from data_shards.base.errors import run
    from smdt.cli.app import app

    run(app)
