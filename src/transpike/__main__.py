"""python -m transpike."""

from .cli import main

main()
