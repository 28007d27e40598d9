"""What Litestar's command line imports before a command of ``litestar agent``, none of which needs an application."""

from litestar import Litestar

app = Litestar(openapi_config=None, logging_config=None)
