"""What the service tells about itself. Knows nothing of ``service`` nor of Litestar."""
