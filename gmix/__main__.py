"""`python -m gmix` is `gmix`."""

import sys

from gmix.cli import main

sys.exit(main())
