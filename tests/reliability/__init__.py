"""What a server does under overload, faults, ends and a long load, beside the official SDK asked the same."""
