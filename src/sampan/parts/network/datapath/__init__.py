"""How connections to Services reach endpoints: eBPF programs at the pods' cgroup, or forwarders in user space."""
