"""`python -m capstan_fetch`: see `main`."""

import sys

from capstan_fetch.main import main

if __name__ == "__main__":
    sys.exit(main())
