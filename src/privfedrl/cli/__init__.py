"""The command line: plans in, runs, ledgers and statements out."""
