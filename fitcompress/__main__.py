"""`python -m fitcompress` runs the `fitcompress` command."""

from fitcompress.cli.entry import main

if __name__ == "__main__":
    main()
