"""`python -m mmtok`: the same as the `mmtok` command."""

import sys

from mmtok.cli.app import main

sys.exit(main())
