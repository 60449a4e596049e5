"""The command `smdt`: one file for each group of commands."""
