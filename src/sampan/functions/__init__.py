"""Functions: a decorated Python function is a Service.

    from sampan.functions import Event, Request, event, http

    @http
    def hello(request: Request) -> str:
        return f"Hello {request.query.get('name', 'World')}!"

    @event(type="order.created")
    async def ship(event: Event) -> dict[str, object]:
        return {"shipped": event.data["id"]}

``sampan func run`` serves them here and again after every change; ``sampan func deploy`` makes a Service of them. This package needs
nothing but the standard library, because it goes into the function's image: there it must import in milliseconds.
"""

from sampan.functions.application import Application, event, http
from sampan.functions.messages import Event, FunctionError, Request, Response

__all__ = ["Application", "Event", "FunctionError", "Request", "Response", "event", "http"]
