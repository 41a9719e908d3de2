"""Joining a node to a running platform: from a token to a working identity, as kubeadm and the kubelet do it.

What flows: a bootstrap token (``tokens``) lets a machine that knows nothing else ask for the cluster's address and authority
(``discovery``), which it believes because the token signs them or because their hash was given. With both it requests a
client certificate as ``system:node:<name>``, registers its Node, and requests the rest (``credentials``). `JoinedKubePart`
(``part``) then stands in for the Kubernetes API in the joined process: the other parts find their `Client` as always.

`Joined` (``interface``) is what it tells them besides.
"""
