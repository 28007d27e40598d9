"""One controller per endpoint. They are thin: what they serve is in the exchange, the session and the agent."""
