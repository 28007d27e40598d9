"""The playground: one page that calls the agent from a browser. Its parts are put together by :mod:`.page`."""
