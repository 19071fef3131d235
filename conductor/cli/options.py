"""Options that several commands have."""

from typing import Annotated

import typer

Json = Annotated[
    bool, typer.Option("--json", help="Write JSON to standard output, the rest to standard error.")
]
