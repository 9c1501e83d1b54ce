"""`python -m erniekit` is the command line."""

import sys

from erniekit.cli.main import main

sys.exit(main())
