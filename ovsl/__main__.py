"""``python -m ovsl``."""

from ovsl.cli import main

raise SystemExit(main())
