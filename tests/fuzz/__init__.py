"""Requests that no client should send: what a server does about them."""
