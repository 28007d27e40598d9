"""What the wire contract defines: headers, models, settings, serialization. Imports nothing of the layers above."""
