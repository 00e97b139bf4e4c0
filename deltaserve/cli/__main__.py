"""`python -m deltaserve.cli` is the command `deltaserve`."""

import sys

from deltaserve.cli.main import main

sys.exit(main())
