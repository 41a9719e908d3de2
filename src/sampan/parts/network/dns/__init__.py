"""The cluster's name server: a codec, an answer function over records, and a thin front over UDP and TCP."""
