"""python -m liftcore"""

import sys

from liftcore.cli import main

sys.exit(main())
