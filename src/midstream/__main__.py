"""`python -m midstream`: the command line."""

from midstream.flows.entry import main

if __name__ == "__main__":
    main()
