"""The commands of ``litestar agent`` and ``litestar-agent``: clients of a running agent, and what serves a file."""
