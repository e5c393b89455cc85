"""`python -m capstan_gateway`."""

from capstan_gateway.main import main

if __name__ == "__main__":
    main()
