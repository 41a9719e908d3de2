"""The Kubernetes API: the ground on which all parts meet.

Strata, each importing only those below it: ``control`` (informers, controllers) → ``client`` (one interface, two
transports) → ``server`` (verbs, HTTP, discovery, watch) → ``access`` (authentication, authorization, admission) → ``patch``
(the patch languages and server-side apply) → ``types`` (resource kinds, schemas, defaulting, validation, tables) → ``store``
(the versioned object store). ``objects`` and ``status`` are the nouns all of them share.
"""
