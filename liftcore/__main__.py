"""python -m liftcore"""

import sys

from liftcore.cli.main import main

sys.exit(main())
