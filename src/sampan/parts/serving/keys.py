"""Labels and annotations of Knative Serving."""

PREFIX = "serving.knative.dev/"

CONFIGURATION = PREFIX + "configuration"
CONFIGURATION_UID = PREFIX + "configurationUID"
CONFIGURATION_GENERATION = PREFIX + "configurationGeneration"
SERVICE = PREFIX + "service"
SERVICE_UID = PREFIX + "serviceUID"
REVISION = PREFIX + "revision"
REVISION_UID = PREFIX + "revisionUID"
ROUTE = PREFIX + "route"
ROUTE_NAMESPACE = PREFIX + "routeNamespace"
ROUTING_STATE = PREFIX + "routingState"
CREATOR = PREFIX + "creator"
LAST_MODIFIER = PREFIX + "lastModifier"
ROUTES = PREFIX + "routes"
ROUTING_STATE_MODIFIED = PREFIX + "routingStateModified"
NO_GC = PREFIX + "no-gc"
ROLLOUT_DURATION = PREFIX + "rollout-duration"
PROGRESS_DEADLINE = PREFIX + "progress-deadline"

CERTIFICATE_CLASS = "networking.knative.dev/certificate.class"
OUR_CERTIFICATE_CLASS = "sampan.certificate.networking.knative.dev"
CERTIFICATE_TYPE = "networking.knative.dev/certificate-type"
TRUST_BUNDLE = "networking.knative.dev/trust-bundle"
"""Label of a ConfigMap whose every value is certificates to trust."""
CERTIFICATE_UID = "networking.internal.knative.dev/certificate-uid"
HTTP_PROTOCOL = ("networking.knative.dev/http-protocol", "networking.knative.dev/httpOption")
DISABLE_TLS = (
    "networking.knative.dev/disable-external-domain-tls",
    "networking.knative.dev/disableExternalDomainTLS",
    "networking.knative.dev/disable-auto-tls",
    "networking.knative.dev/disableAutoTLS",
)
VISIBILITY = "networking.knative.dev/visibility"
CLUSTER_LOCAL = "cluster-local"
INGRESS_CLASS = "networking.knative.dev/ingress.class"
OUR_INGRESS_CLASS = "sampan.ingress.networking.knative.dev"
ROLLOUT = "networking.internal.knative.dev/rollout"
SERVICE_TYPE = "networking.internal.knative.dev/serviceType"
SERVERLESS_SERVICE = "networking.internal.knative.dev/serverlessservice"

LIMIT = "sampan.dev/container-concurrency"
"""On a ServerlessService: requests a pod may have at once; every request passes the gate."""
CLAIMED = "sampan.dev/claimed"
"""On a ClusterDomainClaim that was made for a DomainMapping and goes with it."""
TIMEOUTS = "sampan.dev/timeouts"
"""On an internal Ingress, by revision: ``[whole, response start, idle]`` in seconds, 0 where there is none (JSON)."""
