"""The pages, and what generates those that say what the code says."""
