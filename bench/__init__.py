"""The benchmark: this machine's limits, then every shape against every installed peer.

`make bench`, or `python -m bench --help`.
"""
