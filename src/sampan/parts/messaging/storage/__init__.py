"""The broker's storage: one commit log (`log`), an index over it (`index`), and the snapshot that bounds replay (`checkpoint`).

The log is the only truth. Messages, leases, acknowledgements, offsets, timers, half messages and the definitions of topics
and groups are all frames in it; everything in memory and in the other files is derived from it, and after a crash is
derived again from the last checkpoint onwards.
"""
