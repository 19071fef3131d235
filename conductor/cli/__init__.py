"""The command line."""


def main() -> None:
    """Run the command `conductor`; ends with SystemExit: 0 done, 1 the work failed, 2 wrong use."""
    from conductor.cli.commands import app

    app(prog_name="conductor")
