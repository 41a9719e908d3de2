"""Names of the API types of Knative Serving."""

from sampan.kube.objects import Resource

SERVING = "serving.knative.dev"
AUTOSCALING = "autoscaling.internal.knative.dev"
NETWORKING = "networking.internal.knative.dev"
SYSTEM_NAMESPACE = "knative-serving"

SERVICES = Resource(SERVING, "v1", "services")
CONFIGURATIONS = Resource(SERVING, "v1", "configurations")
REVISIONS = Resource(SERVING, "v1", "revisions")
ROUTES = Resource(SERVING, "v1", "routes")
DOMAIN_MAPPINGS = Resource(SERVING, "v1beta1", "domainmappings")
POD_AUTOSCALERS = Resource(AUTOSCALING, "v1alpha1", "podautoscalers")
METRICS = Resource(AUTOSCALING, "v1alpha1", "metrics")
INGRESSES = Resource(NETWORKING, "v1alpha1", "ingresses")
SERVERLESS_SERVICES = Resource(NETWORKING, "v1alpha1", "serverlessservices")
CERTIFICATES = Resource(NETWORKING, "v1alpha1", "certificates")
CLUSTER_DOMAIN_CLAIMS = Resource(NETWORKING, "v1alpha1", "clusterdomainclaims")
IMAGES = Resource("caching.internal.knative.dev", "v1alpha1", "images")
