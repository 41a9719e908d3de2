"""Names of the API types the traffic part serves."""

from sampan.kube.objects import Resource

_GROUP = "gateway.networking.k8s.io"

GATEWAY_CLASSES = Resource(_GROUP, "v1", "gatewayclasses")
GATEWAYS = Resource(_GROUP, "v1", "gateways")
LISTENER_SETS = Resource(_GROUP, "v1", "listenersets")
HTTP_ROUTES = Resource(_GROUP, "v1", "httproutes")
GRPC_ROUTES = Resource(_GROUP, "v1", "grpcroutes")
TLS_ROUTES = Resource(_GROUP, "v1", "tlsroutes")
TCP_ROUTES = Resource(_GROUP, "v1", "tcproutes")
UDP_ROUTES = Resource(_GROUP, "v1", "udproutes")
BACKEND_TLS_POLICIES = Resource(_GROUP, "v1", "backendtlspolicies")
REFERENCE_GRANTS = Resource(_GROUP, "v1beta1", "referencegrants")
SERVERLESS_SERVICES = Resource("networking.internal.knative.dev", "v1alpha1", "serverlessservices")
KNATIVE_INGRESSES = Resource("networking.internal.knative.dev", "v1alpha1", "ingresses")
