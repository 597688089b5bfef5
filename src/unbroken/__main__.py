"""`python -m unbroken`."""

from unbroken.cli.main import main

main()
