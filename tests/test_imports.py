"""What an import brings in."""

import subprocess
import sys


def test_importing_conductor_imports_neither_celery_nor_kombu() -> None:
    code = (
        "import sys, conductor, workers; print([m for m in ('celery', 'kombu', 'redis') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
