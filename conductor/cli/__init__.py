"""The command line."""


def main() -> None:
    """Run the command; ends with SystemExit: 0 done, 1 the work failed, 2 wrong use, 130 interrupted."""
    try:
        from conductor.cli.commands import app

        app(prog_name="conductor")
    except KeyboardInterrupt:
        # Before the command listens to signals, as while it is imported.
        raise SystemExit(130) from None
