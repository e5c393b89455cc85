"""`python -m capstan_gateway`: see `main`.

Until somebody handles SIGTERM, the first process of a container ignores it, and the imports alone take a second. So it
is handled before them: nothing has been accepted yet, and nothing is lost by ending at once.
"""

import os
import signal

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    from capstan_gateway.main import main

    main()
