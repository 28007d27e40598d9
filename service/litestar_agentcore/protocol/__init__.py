"""The words of the contract: headers, models, settings, serialization. Imports nothing of the layers above."""
