"""`python -m capstan_operator`."""

from capstan_operator.main import main

if __name__ == "__main__":
    main()
