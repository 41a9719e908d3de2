"""The keeper: the process that holds a node's containers, so that they outlive the agent.

One single-threaded process a node. It is the subreaper of everything the node runs, holds the standard streams, writes the
logs, and writes each exit record to disk before it tells anybody. The agent may be killed and come back at any time: it
connects, lists, and goes on. A zygote may be killed too: its containers are the keeper's children, and the next Python
container is exec'ed while a new zygote warms up. If the keeper itself dies, nothing can be known about its containers any
more, so the next agent ends what is left of them by cgroup (or recorded pid) and reports them lost.

``python -m sampan.parts.node.runtime.keeper '<options as JSON>'`` runs one (`Options`). The agent speaks to it over a
SOCK_SEQPACKET socket in JSON (`agents`); whatever is large (specs) lies in files. An agent that stays away for ``abandon`` seconds
is taken to be gone for good: the keeper ends everything and leaves.

    keeper        its life and its one loop
    agents        the socket and its messages
    inheritance   what it takes over at its start
    sandboxes     what a pod's containers share
    blanks        sandboxes' first processes, forked ahead
    containers    starting, signalling, and how they end
    start_report  what a fork says while it becomes one of their processes
    sockets       where pods' sockets go, in tiers without addresses
    streams       logs and attached clients
    executions    further processes in containers
    zygotes       warm interpreters
"""
