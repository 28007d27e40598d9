"""How handlers run: which kind they are, where they run, which tasks are active, what the health is. Knows no HTTP."""
