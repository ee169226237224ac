"""`python -m gmix` is `gmix`."""

import sys

from gmix.cli.main import main

sys.exit(main())
