"""`python -m capstan_engine`: see `main`."""

import sys

from capstan_engine.main import main

if __name__ == "__main__":
    sys.exit(main())
