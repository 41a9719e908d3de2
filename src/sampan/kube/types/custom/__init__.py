"""Custom resources: from a CustomResourceDefinition to served types.

``definition`` says what is wrong with a definition, `resource_types` turns a sound one into one `ResourceType` a served
version, `CustomStrategy` is their behaviour, ``rules`` their CEL validation, ``columns`` their table, ``conversion`` the way
between their versions, `openapi_definitions` what OpenAPI says of them.
"""

from sampan.kube.types.custom.openapi import openapi_definitions
from sampan.kube.types.custom.served import resource_types
from sampan.kube.types.custom.strategy import CustomStrategy

__all__ = ["CustomStrategy", "openapi_definitions", "resource_types"]
