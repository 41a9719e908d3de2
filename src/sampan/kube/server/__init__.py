"""The API server.

A request runs ``routing`` (what does the path name) → ``front`` (authentication, authorization, bodies, answers) →
``verbs`` (the `Api`, the same for every transport) → the store. What each verb does stands in ``reads``, ``watches``,
``writes``, ``deletes`` and ``subresources``; what clients use to find their way in ``discovery`` and ``openapi``.
"""
