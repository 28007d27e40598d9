"""How handlers run, on asyncio and threads: their kinds, sessions, limits, background tasks, health. Not HTTP."""
