"""`python -m unbroken`."""

from unbroken.cli.start import main

main()
